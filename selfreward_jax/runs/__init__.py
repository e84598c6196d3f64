"""A working directory as a run: paths and manifests, its models, its log."""
