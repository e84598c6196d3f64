"""Measures models: judge agreement, win rates, confidence intervals. Nothing here trains a model."""
