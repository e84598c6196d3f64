"""Public benchmarks on a run's models: witnesses from outside, which no training may see."""
