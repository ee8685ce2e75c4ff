"""`perennial check`: finds the problems of a model folder before it runs."""

__all__ = ["preflight"]
