"""Whether a run fits the machines that it names: its programs compiled, or reckoned."""
