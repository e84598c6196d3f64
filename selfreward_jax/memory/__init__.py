"""Memory use of a run: the device programs that `fits` compiles."""
