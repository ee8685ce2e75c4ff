"""Bin counts of the features and predictions of a window, and a sample of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import duckdb
import pyarrow as pa

from perennial.core.errors import DataError
from perennial.core.settings import settings
from perennial.core.sql import quote_identifier, text_literal
from perennial.features import reference_tables
from perennial.features.engine import compose_query, first_line, input_columns
from perennial.monitoring.histograms import PREDICTION, BinCounts, ReferenceColumn, count_bins, sample_rows
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session

Sample = dict[str, "pa.ChunkedArray[Any]"]

#: Most rows of several partitions whose features are computed and counted by one statement. Joins with reference tables
#: sort the rows, on disk if they exceed the memory limit.
MAX_GROUP_ROWS = 1_000_000


def count_features(
    trained: ModelSpec, reference: Mapping[str, ReferenceColumn], start: str, as_of: str, sample_size: int
) -> tuple[BinCounts, Sample]:
    """Count the features of a window.

    DuckDB computes the features and counts them in one statement, so that no row leaves it: half the time of counting
    what `FeatureQuery.compute` returns.

    Args:
        trained: the spec that the champion was trained from.
        reference: columns with their bins.
        start: first partition date.
        as_of: last partition date.
        sample_size: approximate number of rows of the sample.

    Returns:
        The counts; and the sample, values by column, without personal columns.

    Raises:
        DataError: the features' SQL failed, or lost or duplicated rows.
    """
    columns = {c: column for c, column in reference.items() if c != PREDICTION}
    uri = delta_tables.table_uri("published", trained.name)
    sizes = {d: n for d, n in delta_tables.rows_by_partition(uri).items() if start <= d <= as_of}
    total = sum(sizes.values())
    if not total:
        return BinCounts(0, dict.fromkeys(columns)), {}
    step = max(1, total // max(sample_size, 1))
    con = _locked_connection(trained)
    counts: list[BinCounts] = []
    parts: list[pa.Table] = []
    for group in delta_tables.group_by_rows(sizes, MAX_GROUP_ROWS):
        duckdb_session.create_view(con, "window_rows", uri, None, group.start, group.end)
        partitions = f"{group.start}..{group.end}"
        try:
            counted, sampled = _count_and_sample(con, trained, columns, step, sample_size)
        except duckdb.Error as error:
            raise DataError(
                f"features.sql failed: {first_line(error, hide=bool(trained.data.personal))}",
                "score this window first: the error of the score step has more details",
                model=trained.name,
                partition=partitions,
            ) from error
        if counted.rows != group.rows:
            raise DataError(
                f"features.sql returned {counted.rows} rows for {group.rows} rows",
                "join reference tables by a unique key and do not filter: it must return one row for each row",
                model=trained.name,
                partition=partitions,
            )
        counts.append(counted)
        parts.append(sampled)
    return replace(_sum_counts(counts), days=len(sizes)), _concat(parts)


def _count_and_sample(
    con: duckdb.DuckDBPyConnection,
    trained: ModelSpec,
    columns: Mapping[str, ReferenceColumn],
    step: int,
    sample_size: int,
) -> tuple[BinCounts, pa.Table]:
    """Compute the features of the view ``window_rows``; returns counts and a sample of the rows."""
    listed = ", ".join(map(quote_identifier, input_columns(trained)))
    keys = ", ".join(quote_identifier(k) for k in trained.data.key)
    con.execute(f"CREATE OR REPLACE TEMP VIEW published AS SELECT {listed} FROM window_rows")
    con.execute(f"CREATE OR REPLACE TEMP VIEW window_features AS {compose_query(trained)}")
    counted = count_bins(con, "window_features", columns)
    hashed = f"SELECT {listed} FROM window_rows WHERE hash({keys}) % {step} = 0"
    con.execute(f"CREATE OR REPLACE TEMP VIEW published AS {hashed}")
    names = _sampled_columns(con, columns, trained)
    return counted, sample_rows(con, "window_features", n=sample_size, columns=names)


def _locked_connection(trained: ModelSpec) -> duckdb.DuckDBPyConnection:
    """Open a connection that can read only the reference tables and the lake's files."""
    con = duckdb_session.connect()
    reference_tables.load_into(con, trained, reference_tables.sync_to_lake(trained))
    con.execute(f"SET allowed_directories=[{text_literal(settings().lake)}]")
    con.execute("SET enable_external_access=false; SET lock_configuration=true")
    return con


def count_predictions(
    spec: ModelSpec,
    reference: Mapping[str, ReferenceColumn],
    version: str,
    start: str,
    as_of: str,
    sample_size: int,
) -> tuple[BinCounts, Sample]:
    """Count the predictions of one version in a window.

    Args:
        spec: the model.
        reference: columns with their bins.
        version: version of the model.
        start: first partition date.
        as_of: last partition date.
        sample_size: most rows of the sample.

    Returns:
        The counts; and the sample, values by column.
    """
    con = duckdb_session.connect()
    column = reference.get(PREDICTION)
    uri = delta_tables.table_uri("predictions", spec.name)
    if column is None or not duckdb_session.create_view(con, "predictions", uri, None, start, as_of):
        return BinCounts(0, {PREDICTION: None}), {}
    condition = f"CAST(model_version AS VARCHAR) = {text_literal(version)}"
    con.execute(f"CREATE TEMP VIEW of_version AS SELECT prediction FROM predictions WHERE {condition}")
    days = con.execute(
        f"SELECT count(DISTINCT {delta_tables.PARTITION}) FROM predictions WHERE {condition}"
    ).fetchall()[0][0]
    counts = replace(count_bins(con, "of_version", {PREDICTION: column}), days=days)
    if not counts.rows:
        return counts, {}
    return counts, {PREDICTION: sample_rows(con, "of_version", n=sample_size).column(PREDICTION)}


def _sampled_columns(
    con: duckdb.DuckDBPyConnection, columns: Mapping[str, ReferenceColumn], trained: ModelSpec
) -> list[str]:
    names = [str(r[0]) for r in con.execute("DESCRIBE window_features").fetchall()]
    return [c for c in names if c in columns and c not in trained.data.personal]


def _sum_counts(counts: list[BinCounts]) -> BinCounts:
    """Add up the counts of all groups; None for a column that is missing in one of them."""
    columns: dict[str, list[int] | None] = {}
    for column in counts[0].columns:
        parts = [c.columns[column] for c in counts]
        columns[column] = [sum(p) for p in zip(*[p for p in parts if p], strict=True)] if all(parts) else None
    return BinCounts(sum(c.rows for c in counts), columns)


def _concat(parts: list[pa.Table]) -> Sample:
    table = pa.concat_tables(parts)
    return dict(zip(table.column_names, table.columns, strict=True))
