"""Requests of people with instructions that a program can check."""
