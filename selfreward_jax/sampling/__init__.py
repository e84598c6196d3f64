"""From prompts to completions: the engine and the jitted sampler."""
