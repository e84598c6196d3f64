"""The embedded world: somebody asks for a number of things of one kind for an occasion."""
