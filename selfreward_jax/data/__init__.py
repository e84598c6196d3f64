"""Seed data: files and data sets, record formats, disjoint seed sets, EFT."""
