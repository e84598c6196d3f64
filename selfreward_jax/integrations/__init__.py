"""Other programs: lm-evaluation-harness, and the file formats of the field."""
