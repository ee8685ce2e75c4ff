"""Rows joined with their labels: published rows, and predictions.

Training reads them a few partitions at a time, sorted by key, so that neither memory nor the result depends on the
files of the lake.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from perennial.core.sql import SQL_TYPES, batch_rows, quote_identifier
from perennial.feeds import parquet_columns
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session, leftovers

#: The column of the label in joined rows.
LABEL = "__label"
#: Rows of a record batch; fewer of a table with very many columns.
BATCH_ROWS = 131_072
#: Rows that are joined and sorted together, likewise; smaller partitions are combined up to this number.
GROUP_ROWS = 400_000
#: Columns of a wide table that are sorted together: each thread needs memory for every column of its query.
COLUMNS_PER_SORT = 250


def read_labelled_rows(
    spec: ModelSpec,
    days: tuple[str, ...],
    version: int | None,
    labels_version: int | None,
    share: float = 1.0,
) -> Iterator[pa.Table]:
    """Read published rows that have a label, by date and key, in tables of up to `BATCH_ROWS` rows.

    Args:
        spec: the model.
        days: partition dates in order, with no other labelled date between the first and the last.
        version: version of the published rows; the latest when None.
        labels_version: version of the labels; the latest when None.
        share: about which share of the rows, for ranking of the lists, is read: a sample by their keys. A larger one
            has all rows of a smaller one.

    Yields:
        The columns of the rows, and their label as `LABEL`.
    """
    columns = len(spec.data.columns)
    con = duckdb_session.connect(duckdb_session.threads_for(columns), memory_share=0.3)
    batch = batch_rows(BATCH_ROWS, columns)
    for query, rows in _joined_groups(con, spec, days, version, labels_version):
        sample = _sample(spec, query, share)
        if columns > COLUMNS_PER_SORT and rows > batch_rows(GROUP_ROWS, columns):
            yield from _sort_by_columns(con, sample, row_order(spec), batch)
            continue
        for rows_read in con.sql(f"{sample} ORDER BY {row_order(spec)}").to_arrow_reader(batch):
            if rows_read.num_rows:
                yield pa.Table.from_batches([rows_read])


def read_distinct_labels(
    spec: ModelSpec, days: tuple[str, ...], version: int | None, labels_version: int | None
) -> Iterator[pa.ChunkedArray[Any]]:
    """Read the different labels of the rows that `read_labelled_rows` reads, a few partitions at a time."""
    con = duckdb_session.connect(memory_share=0.3)
    for query, _ in _joined_groups(con, spec, days, version, labels_version):
        yield con.sql(f"SELECT DISTINCT {LABEL} FROM ({query})").to_arrow_table().column(LABEL)


def _joined_groups(
    con: duckdb.DuckDBPyConnection,
    spec: ModelSpec,
    days: tuple[str, ...],
    version: int | None,
    labels_version: int | None,
) -> Iterator[tuple[str, int]]:
    """SQL of the rows with their labels, a few partitions at a time, each with their number of published rows."""
    rows = delta_tables.rows_by_partition(delta_tables.table_uri("published", spec.name), version)
    group_rows = batch_rows(GROUP_ROWS, len(spec.data.columns))
    for group in delta_tables.group_by_rows({day: rows.get(day, 0) for day in days}, group_rows):
        if not create_row_view(con, "__rows", spec, version, group.start, group.end):
            continue
        labels = None
        if spec.label.source is not None:
            labels = "__labels"
            if not create_label_view(con, labels, spec, labels_version, group.start, group.end):
                continue
        yield join_labels(spec, "__rows", labels), group.rows


def count_labelled_rows(
    spec: ModelSpec, days: tuple[str, ...], version: int | None, labels_version: int | None
) -> int:
    """Count the rows that `read_labelled_rows` reads; those of labels that have no row, too, where labels are a feed.

    Args:
        spec: the model.
        days: as of `read_labelled_rows`.
        version: version of the published rows; the latest when None.
        labels_version: version of the labels; the latest when None.
    """
    rows = delta_tables.rows_by_partition(delta_tables.table_uri("published", spec.name), version)
    if spec.label.source is not None:
        labels = delta_tables.rows_by_partition(delta_tables.table_uri("labels", spec.name), labels_version)
        return sum(min(rows.get(day, 0), labels.get(day, 0)) for day in days)
    present = [day for day in days if rows.get(day)]
    with duckdb_session.connect_small() as con:
        if not present or not create_row_view(con, "__rows", spec, version, present[0], present[-1]):
            return 0
        label = quote_identifier(spec.label.expression)
        return int(con.sql(f"SELECT count({label}) FROM __rows").fetchall()[0][0])


def _sample(spec: ModelSpec, query: str, share: float) -> str:
    """Compose the SQL of about a share of a query's rows, or lists."""
    if share >= 1:
        return query
    key = ", ".join(
        map(quote_identifier, (delta_tables.PARTITION, *([spec.group] if spec.group else spec.data.key)))
    )
    return f"SELECT * FROM ({query}) WHERE hash({key}) < {int(share * 2**64)}::UBIGINT"


def _sort_by_columns(
    con: duckdb.DuckDBPyConnection, query: str, order: str, batch: int
) -> Iterator[pa.Table]:
    """Read the sorted rows of a query whose rows do not fit into memory, some columns at a time.

    DuckDB sorts on disk, but each thread needs memory for all columns. A partition has each key once, so that every
    sort has the same order.

    Args:
        con: connection that has the query's relations.
        query: the rows.
        order: what they are sorted by.
        batch: rows of a table.
    """
    names = con.sql(query).columns
    queries = [
        f"SELECT {', '.join(map(quote_identifier, block))} FROM ({query}) ORDER BY {order}"
        for block in parquet_columns.divide(names, COLUMNS_PER_SORT)
    ]
    with leftovers.temporary_folder("sorted-") as folder:
        path = folder / "rows.parquet"
        parquet_columns.copy_columns(con, queries, path, len(names))
        with pq.ParquetFile(path) as file:
            # Of DuckDB's results every column may have nulls.
            schema = pa.schema([field.with_nullable(True) for field in file.schema_arrow])
            for rows_read in parquet_columns.read_tables(file, batch):
                yield pa.Table.from_arrays(rows_read.columns, schema=schema)


def read_sorted(con: duckdb.DuckDBPyConnection, query: str, order: str) -> pa.Table:
    """Read the sorted rows of a query that fit into memory, of a wide table some columns at a time.

    Args:
        con: connection that has the query's relations.
        query: the rows.
        order: what they are sorted by: no two rows are equal in it.
    """
    names = con.sql(query).columns
    blocks: list[pa.Table] = [
        con.sql(
            f"SELECT {', '.join(map(quote_identifier, block))} FROM ({query}) ORDER BY {order}"
        ).to_arrow_table()
        for block in parquet_columns.divide(names, COLUMNS_PER_SORT)
    ]
    return pa.table([column for block in blocks for column in block.columns], names=names)


def create_row_view(
    con: duckdb.DuckDBPyConnection,
    view: str,
    spec: ModelSpec,
    version: int | None = None,
    start: str | None = None,
    end: str | None = None,
) -> bool:
    """Create a view of published rows that has all declared columns.

    A column that was declared after partitions had been published is null in them.

    Args:
        con: the connection that gets the view; a view of that name is replaced.
        view: name of the view.
        spec: the model.
        version: version of the published rows; the latest when None.
        start: first partition date; that of the table when not given.
        end: last partition date; that of the table when not given.

    Returns:
        Whether there is anything to read; if not, no view is created.
    """
    uri = delta_tables.table_uri("published", spec.name)
    columns = {column: SQL_TYPES[kind] for column, kind in spec.data.columns.items()}
    return duckdb_session.create_view(con, view, uri, version, start, end, columns)


def create_label_view(
    con: duckdb.DuckDBPyConnection, view: str, spec: ModelSpec, version: int | None, start: str, end: str
) -> bool:
    """Create a view of the labels of some partitions: key, ``partition_date`` and label (`ModelSpec.lake_column`).

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
    rows = f"{view}_rows"
    if not create_row_view(con, rows, spec, version, start, end):
        return False
    columns = ", ".join(map(quote_identifier, _row_key(spec)))
    con.execute(
        f"CREATE OR REPLACE TEMP VIEW {quote_identifier(view)} AS "
        f"SELECT {columns}, {quote_identifier(spec.label.expression)} AS {spec.lake_column('label')} "
        f"FROM {quote_identifier(rows)}"
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
    match, label = same_row(spec, "__r", "__l"), f"__l.{spec.lake_column('label')}"
    if keep_unlabelled:
        return f"SELECT __r.*, {label} AS {LABEL} FROM {rows} __r LEFT JOIN {labels} __l ON {match}"
    return (
        f"SELECT __r.*, {label} AS {LABEL} FROM {rows} __r JOIN {labels} __l ON {match} "
        f"WHERE {label} IS NOT NULL"
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
