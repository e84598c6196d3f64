"""Integrations with other software: lm-evaluation-harness, and the file formats of AlpacaEval, MT-Bench and TRL."""
