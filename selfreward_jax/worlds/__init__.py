"""Worlds that bring their own requests, answers and oracle."""
