"""Seed data: files and data sets, the forms of records, disjoint seed sets, EFT."""
