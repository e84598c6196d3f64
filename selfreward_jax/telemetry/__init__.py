"""Where time goes: the account of seconds, progress lines, the compile cache."""
