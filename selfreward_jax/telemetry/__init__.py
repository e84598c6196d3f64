"""Time accounting, progress lines, the compile cache, and safe display of text."""
