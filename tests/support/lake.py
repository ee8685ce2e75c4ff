"""Tables of the lake, read whole."""

from __future__ import annotations

import pyarrow as pa

from perennial.storage import duckdb_session


def find_table(
    uri: str, version: int | None = None, start: str | None = None, end: str | None = None
) -> pa.Table | None:
    """The partitions ``start`` to ``end`` of a table; None where there are none."""
    with duckdb_session.connect(threads=1) as con:
        if not duckdb_session.create_view(con, "t", uri, version, start, end):
            return None
        return con.sql("SELECT * FROM t").to_arrow_table()


def read_table(
    uri: str, version: int | None = None, start: str | None = None, end: str | None = None
) -> pa.Table:
    """As `find_table`, but the table must have them."""
    table = find_table(uri, version, start, end)
    assert table is not None, uri
    return table
