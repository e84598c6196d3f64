"""Sampling from a model: the engine (prompts to completions) and the jitted sampler."""
