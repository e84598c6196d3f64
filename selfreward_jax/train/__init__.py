"""Losses, batches, the trainer."""
