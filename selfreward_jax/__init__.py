"""Self-rewarding language models in JAX."""
