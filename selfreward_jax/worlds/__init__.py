"""The embedded world."""
