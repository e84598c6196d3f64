"""Memory of a run: what `fits` compiles."""
