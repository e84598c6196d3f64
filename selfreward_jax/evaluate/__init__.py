"""Measures models; trains nothing."""
