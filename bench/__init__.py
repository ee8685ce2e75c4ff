"""Benchmarks of the steps against direct calls of the same libraries (`make bench`, `make bench-loop`)."""
