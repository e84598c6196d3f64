"""The mesh and the shardings."""
