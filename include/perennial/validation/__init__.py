"""A model's Great Expectations suite: its checks, their evaluation in DuckDB, the data docs."""
