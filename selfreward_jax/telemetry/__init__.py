"""Time accounting, progress lines, and the compile cache."""
