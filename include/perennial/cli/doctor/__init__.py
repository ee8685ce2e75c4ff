"""`perennial doctor`: checks that everything the DAGs need is available."""

__all__ = ["cluster", "environment", "finding", "nodes"]
