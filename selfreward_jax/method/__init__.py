"""The method, on rows of text."""
