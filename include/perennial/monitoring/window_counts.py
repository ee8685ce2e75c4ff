"""The rows of a window: their features and predictions, counted on the bins of a reference, and a sample of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from perennial.core.errors import DataError
from perennial.core.settings import settings
from perennial.core.sql import quote_identifier, text_literal
from perennial.features import reference_tables
from perennial.features.engine import compose_query, first_line, input_columns
from perennial.monitoring.histograms import PREDICTION, BinCounts, ReferenceColumn, count_bins, sample_rows
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    Sample = dict[str, pa.ChunkedArray]

#: Rows whose features are computed and counted by one statement; partitions are taken together up to this many.
#: Joins to reference tables sort their rows, and beyond the memory allowed they do it on disk.
MAX_GROUP_ROWS = 1_000_000


def count_features(
    trained: ModelSpec, reference: Mapping[str, ReferenceColumn], start: str, as_of: str, n: int
) -> tuple[BinCounts, Sample]:
    """Counts of the window's features, and a sample of about ``n`` rows without personal columns.

    DuckDB computes the features and counts them in one statement, so that no row leaves it: half the time of counting
    what `FeatureQuery.compute` returns.

    Args:
        trained: the spec that the champion was trained from.

    Raises:
        DataError: the features' SQL failed, or lost or doubled rows.
    """
    import duckdb

    columns = {c: s for c, s in reference.items() if c != PREDICTION}
    uri = delta_tables.table_uri("published", trained.name)
    sizes = {d: n for d, n in delta_tables.rows_by_partition(uri).items() if start <= d <= as_of}
    groups = list(delta_tables.group_by_rows(sizes, MAX_GROUP_ROWS))
    total = sum(sizes.values())
    step = max(1, total // max(n, 1))
    counts: list[BinCounts] = []
    parts: list[pa.Table] = []
    if not total:
        return BinCounts(0, dict.fromkeys(columns)), {}
    con = duckdb_session.connect()
    reference_tables.load_into(con, trained, reference_tables.sync_to_lake(trained))
    # The SQL can read what was registered and the lake's own files, and nothing else.
    con.execute(f"SET allowed_directories=[{text_literal(settings().lake)}]")
    con.execute("SET enable_external_access=false; SET lock_configuration=true")
    listed = ", ".join(map(quote_identifier, input_columns(trained)))
    keys = ", ".join(quote_identifier(k) for k in trained.data.key)
    for first, last, rows, _ in groups:
        duckdb_session.create_view(con, "window_rows", uri, None, first, last)
        try:
            con.execute(f"CREATE OR REPLACE TEMP VIEW published AS SELECT {listed} FROM window_rows")
            con.execute(f"CREATE OR REPLACE TEMP VIEW window_features AS {compose_query(trained)}")
            counts.append(count_bins(con, "window_features", columns))
            few = f"SELECT {listed} FROM window_rows WHERE hash({keys}) % {step} = 0"
            con.execute(f"CREATE OR REPLACE TEMP VIEW published AS {few}")
            parts.append(
                sample_rows(con, "window_features", n=n, columns=_sampled_columns(con, columns, trained))
            )
        except duckdb.Error as error:
            raise DataError(
                f"features.sql failed: {first_line(error, hide=bool(trained.data.personal))}",
                "score this window first: the score step says more",
                model=trained.name,
                partition=f"{first}..{last}",
            ) from error
        if counts[-1].rows != rows:
            raise DataError(
                f"features.sql: {rows} rows went in, {counts[-1].rows} came out",
                "join reference tables by a unique key, do not filter: each row has its features once",
                model=trained.name,
                partition=f"{first}..{last}",
            )
    return replace(_sum_counts(counts), days=len(sizes)), _concat(parts)


def count_predictions(
    spec: ModelSpec, reference: Mapping[str, ReferenceColumn], version: str, start: str, as_of: str, n: int
) -> tuple[BinCounts, Sample]:
    """Counts and a sample of what this very version predicted in the window."""
    con = duckdb_session.connect()
    shape = reference.get(PREDICTION)
    uri = delta_tables.table_uri("predictions", spec.name)
    if shape is None or not duckdb_session.create_view(con, "predictions", uri, None, start, as_of):
        return BinCounts(0, {PREDICTION: None}), {}
    mine = f"CAST(model_version AS VARCHAR) = {text_literal(version)}"
    con.execute(f"CREATE TEMP VIEW mine AS SELECT prediction FROM predictions WHERE {mine}")
    days = con.execute(
        f"SELECT count(DISTINCT {delta_tables.PARTITION}) FROM predictions WHERE {mine}"
    ).fetchall()[0][0]
    counts = replace(count_bins(con, "mine", {PREDICTION: shape}), days=days)
    return counts, {PREDICTION: sample_rows(con, "mine", n=n).column(PREDICTION)} if counts.rows else {}


def _sampled_columns(
    con: duckdb.DuckDBPyConnection, columns: Mapping[str, ReferenceColumn], trained: ModelSpec
) -> list[str]:
    names = [str(r[0]) for r in con.execute("DESCRIBE window_features").fetchall()]
    return [c for c in names if c in columns and c not in trained.data.personal]


def _sum_counts(counts: list[BinCounts]) -> BinCounts:
    columns: dict[str, list[int] | None] = {}
    for column in counts[0].columns:
        parts = [c.columns[column] for c in counts]
        columns[column] = [sum(p) for p in zip(*[p for p in parts if p], strict=True)] if all(parts) else None
    return BinCounts(sum(c.rows for c in counts), columns)


def _concat(parts: list[pa.Table]) -> Sample:
    import pyarrow as pa

    table = pa.concat_tables(parts)
    return dict(zip(table.column_names, table.columns, strict=True))
