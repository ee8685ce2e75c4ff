"""Benchmarks of what auditors ask."""
