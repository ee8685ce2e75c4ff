"""Databases that feeds are read from and predictions are written to, each by the name of its connection.

`connections` looks a connection up and imports nothing heavy; `access` opens it to read, `tables` writes.
"""

__all__ = ["access", "connections", "tables"]
