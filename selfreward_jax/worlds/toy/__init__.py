"""The toy world: a person asks for a number of things of one topic for an occasion."""
