"""Self-rewarding language models, native to JAX: a model that improves by judging itself."""

__version__ = "0.1.0"
