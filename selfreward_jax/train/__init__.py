"""Losses, batches, the trainer and its checkpoints."""
