"""Garbage collection: when to collect. What is garbage is decided where the rows are."""
