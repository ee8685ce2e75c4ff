"""Rows joined with their labels: published rows, and predictions.

Training reads them a few partitions at a time, sorted by key, so that neither memory nor the result depends on the
files of the lake.
"""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pyarrow as pa

from perennial.core.sql import quote_identifier
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session

#: The column of the label in joined rows.
LABEL = "__label"
#: Rows of a record batch.
BATCH_ROWS = 131_072
#: Rows that are joined and sorted together; smaller partitions are combined up to this number.
GROUP_ROWS = 400_000


def read_labelled_rows(
    spec: ModelSpec, days: tuple[str, ...], version: int | None, labels_version: int | None
) -> Iterator[pa.Table]:
    """Read published rows that have a label, by date and key, in tables of up to `BATCH_ROWS` rows.

    Args:
        spec: the model.
        days: partition dates in order, with no other labelled date between the first and the last.
        version: version of the published rows; the latest when None.
        labels_version: version of the labels; the latest when None.

    Yields:
        The columns of the rows, and their label as `LABEL`.
    """
    uri = delta_tables.table_uri("published", spec.name)
    con = duckdb_session.connect(memory_share=0.3)
    rows = delta_tables.rows_by_partition(uri, version)
    for group in delta_tables.group_by_rows({day: rows.get(day, 0) for day in days}, GROUP_ROWS):
        if not duckdb_session.create_view(con, "rows", uri, version, group.start, group.end):
            continue
        labels = None
        if spec.label.source is not None:
            labels = "labels"
            if not create_label_view(con, labels, spec, labels_version, group.start, group.end):
                continue
        query = join_labels(spec, "rows", labels)
        for batch in con.sql(f"{query} ORDER BY {row_order(spec)}").to_arrow_reader(BATCH_ROWS):
            if batch.num_rows:
                yield pa.Table.from_batches([batch])


def create_label_view(
    con: duckdb.DuckDBPyConnection, view: str, spec: ModelSpec, version: int | None, start: str, end: str
) -> bool:
    """Create a view of the labels of some partitions: key, ``partition_date`` and ``label``.

    Args:
        con: the connection that gets the view; a view of that name is replaced.
        view: name of the view.
        spec: the model; where its label is a column of the published rows, the view reads that column.
        version: version of the table that holds the labels; the latest when None.
        start: first partition date.
        end: last partition date.

    Returns:
        Whether there is anything to read; if not, no view is created.
    """
    if spec.label.source is not None:
        uri = delta_tables.table_uri("labels", spec.name)
        return duckdb_session.create_view(con, view, uri, version, start, end)
    uri, rows = delta_tables.table_uri("published", spec.name), f"{view}_rows"
    if not duckdb_session.create_view(con, rows, uri, version, start, end):
        return False
    columns = ", ".join(map(quote_identifier, _row_key(spec)))
    con.execute(
        f"CREATE OR REPLACE TEMP VIEW {quote_identifier(view)} AS "
        f"SELECT {columns}, {quote_identifier(spec.label.expression)} AS label FROM {quote_identifier(rows)}"
    )
    return True


def join_labels(spec: ModelSpec, rows: str, labels: str | None, *, keep_unlabelled: bool = False) -> str:
    """Compose the SQL of rows with their labels.

    Args:
        spec: the model.
        rows: the rows, with key and ``partition_date``: a view, or a query in parentheses.
        labels: a view from `create_label_view`; None if the label is a column of ``rows``.
        keep_unlabelled: keep rows without a label, whose `LABEL` is null.

    Returns:
        SQL that returns the columns of ``rows`` and their label as `LABEL`.
    """
    if labels is None:
        query = f"SELECT *, {quote_identifier(spec.label.expression)} AS {LABEL} FROM {rows}"
        return query if keep_unlabelled else f"{query} WHERE {LABEL} IS NOT NULL"
    match = same_row(spec, "r", "l")
    if keep_unlabelled:
        return f"SELECT r.*, l.label AS {LABEL} FROM {rows} r LEFT JOIN {labels} l ON {match}"
    return (
        f"SELECT r.*, l.label AS {LABEL} FROM {rows} r JOIN {labels} l ON {match} WHERE l.label IS NOT NULL"
    )


def same_row(spec: ModelSpec, left: str, right: str) -> str:
    """Compose the SQL condition that rows of two relations have the same key and partition."""
    return " AND ".join(
        f"{left}.{quote_identifier(c)} = {right}.{quote_identifier(c)}" for c in _row_key(spec)
    )


def row_order(spec: ModelSpec) -> str:
    """Compose the SQL order that makes results reproducible: partition, list (for ranking) and key."""
    lists = [spec.group] if spec.group else []
    return ", ".join(map(quote_identifier, (delta_tables.PARTITION, *lists, *spec.data.key)))


def _row_key(spec: ModelSpec) -> tuple[str, ...]:
    return (*spec.data.key, delta_tables.PARTITION)
