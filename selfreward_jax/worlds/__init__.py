"""Embedded worlds: each has its own prompts, answers and oracle."""
