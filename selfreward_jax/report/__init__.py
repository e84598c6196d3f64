"""What a run reports: summary.json, tables, report.html, the model card, the plan of a dry run."""
