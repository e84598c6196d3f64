"""The method of the paper, on rows of text."""
