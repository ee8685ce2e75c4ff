"""One module per stage of the loop: its DAG, and the function that each of its tasks calls."""

__all__ = ["data", "features", "monitor", "rollback", "score", "train"]
