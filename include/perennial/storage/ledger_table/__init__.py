"""What the ledger is made of: the chain of its records, and the Delta table that holds them."""

__all__ = ["chain", "table_files"]
