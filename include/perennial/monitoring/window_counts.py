"""Bin counts and samples: of the features and predictions of a window, and of what they are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from perennial.core.durations import Duration
from perennial.core.errors import DataError
from perennial.core.progress import Progress
from perennial.core.redaction import error_text
from perennial.core.sql import quote_identifier, text_literal
from perennial.features import author_sql, feature_tables, reference_tables
from perennial.features.declared_rows import declared_rows_sql
from perennial.features.engine import compose_query
from perennial.features.point_in_time import FeatureTableViews, joined_rows_sql
from perennial.features.reference_copies import ReferenceCopies
from perennial.modeling import registry
from perennial.modeling.registry import ModelVersion
from perennial.monitoring.histograms import PREDICTION, BinCounts, ReferenceColumn, count_bins, sample_rows
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session, pages

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
    con, references = _locked_connection(trained)
    tables = FeatureTableViews(con, trained, None)
    counts: list[BinCounts] = []
    progress, done = Progress(), 0
    parts: list[pa.Table] = []
    for group in _groups(references, sizes):
        references.bind(group.start)
        duckdb_session.create_view(con, "__window_rows", uri, None, group.start, group.end)
        partitions = f"{group.start}..{group.end}"
        try:
            with duckdb_session.time_limit(con):
                tables.bind(declared_rows_sql(con, trained, "SELECT * FROM __window_rows"))
                counted, sampled = _count_and_sample(con, trained, columns, step, sample_size)
        except (duckdb.Error, TimeoutError) as error:
            raise DataError(
                f"features.sql failed: {error_text(error, hide=trained.hides_values, names=trained.data.columns)}",
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
        done += counted.rows
        progress.report("Counted the features of %d of %d rows of the window", done, total)
        parts += [sampled] if sampled is not None else []
    return replace(_sum_counts(counts), days=len(sizes)), _concat(parts)


def _groups(references: ReferenceCopies, sizes: Mapping[str, int]) -> Iterator[delta_tables.PartitionGroup]:
    """Divide partitions into groups that one statement counts: their rows join the same copies of reference tables."""
    for days in references.group(sorted(sizes)):
        yield from delta_tables.group_by_rows({day: sizes[day] for day in days}, MAX_GROUP_ROWS)


def _count_and_sample(
    con: duckdb.DuckDBPyConnection,
    trained: ModelSpec,
    columns: Mapping[str, ReferenceColumn],
    step: int,
    sample_size: int,
) -> tuple[BinCounts, pa.Table | None]:
    """Compute the features of the view ``__window_rows``; returns counts and, for the report, a sample of the rows."""
    keys = ", ".join(quote_identifier(k) for k in trained.data.key)
    rows = joined_rows_sql(con, trained, declared_rows_sql(con, trained, "SELECT * FROM __window_rows"))
    con.execute(f"CREATE OR REPLACE TEMP VIEW __published AS {rows}")
    con.execute(f"CREATE OR REPLACE TEMP VIEW __window_features AS {compose_query(trained)}")
    counted = count_bins(con, "__window_features", columns)
    hashed = f"SELECT * FROM __window_rows WHERE hash({keys}) % {step} = 0"

    def sample() -> pa.Table:
        rows = joined_rows_sql(con, trained, declared_rows_sql(con, trained, hashed))
        con.execute(f"CREATE OR REPLACE TEMP VIEW __published AS {rows}")
        names = _sampled_columns(con, columns, trained)
        return sample_rows(con, "__window_features", n=sample_size, columns=names)

    return counted, pages.attempt("the report's sample of the window", sample)[0]


def _locked_connection(trained: ModelSpec) -> tuple[duckdb.DuckDBPyConnection, ReferenceCopies]:
    """Open a connection that can read only the reference tables and the model's published rows."""
    con = duckdb_session.connect()
    author_sql.check_model(con, trained)
    references = ReferenceCopies(con, trained, reference_tables.sync_to_lake(trained))
    tables = [feature_tables.uri(table) for _, table in trained.feature_tables]
    published = delta_tables.table_uri("published", trained.name)
    duckdb_session.lock(con, folders=[published, *references.folders, *tables])
    return con, references


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
    if column is None or not duckdb_session.create_view(con, "__predictions", uri, None, start, as_of):
        return BinCounts(0, {PREDICTION: None}), {}
    condition = f"CAST({spec.lake_column('model_version')} AS VARCHAR) = {text_literal(version)}"
    value = f"{spec.lake_column('prediction')} AS {PREDICTION}"
    con.execute(f"CREATE TEMP VIEW __of_version AS SELECT {value} FROM __predictions WHERE {condition}")
    days = con.execute(
        f"SELECT count(DISTINCT {delta_tables.PARTITION}) FROM __predictions WHERE {condition}"
    ).fetchall()[0][0]
    counts = replace(count_bins(con, "__of_version", {PREDICTION: column}), days=days)
    if not counts.rows:
        return counts, {}
    predictions = pages.attempt(
        "the report's sample of the predictions", lambda: sample_rows(con, "__of_version", n=sample_size)
    )[0]
    return counts, {} if predictions is None else {PREDICTION: predictions.column(PREDICTION)}


def _sampled_columns(
    con: duckdb.DuckDBPyConnection, columns: Mapping[str, ReferenceColumn], trained: ModelSpec
) -> list[str]:
    names = [str(r[0]) for r in con.execute("DESCRIBE __window_features").fetchall()]
    return [c for c in names if c in columns and c not in trained.personal_names]


def _sum_counts(counts: list[BinCounts]) -> BinCounts:
    """Add up the counts of all groups; None for a column that is missing in one of them."""
    columns: dict[str, list[int] | None] = {}
    for column in counts[0].columns:
        parts = [c.columns[column] for c in counts]
        columns[column] = [sum(p) for p in zip(*[p for p in parts if p], strict=True)] if all(parts) else None
    return BinCounts(sum(c.rows for c in counts), columns)


def _concat(parts: list[pa.Table]) -> Sample:
    table = (
        pages.attempt("the report's sample of the window", lambda: pa.concat_tables(parts))[0]
        if parts
        else None
    )
    return {} if table is None else dict(zip(table.column_names, table.columns, strict=True))


def reference_date(spec: ModelSpec, day: str) -> str:
    """The reference date of a date; a year counts as 52 weeks, to compare the same weekdays."""
    distance = spec.monitoring.window if spec.monitoring.reference == "rolling" else Duration(52, "week")
    return spec.cadence.shift(day, -distance.partitions(spec.cadence))


def reference_counts(
    spec: ModelSpec,
    champion: ModelVersion,
    reference: Mapping[str, ReferenceColumn],
    start: str,
    as_of: str,
) -> Mapping[str, ReferenceColumn]:
    """The reference columns, with the counts of the window that the policy compares with.

    The bins are those of the training. If nothing was published in that window, all counts are 0 and no column can be
    evaluated.

    Args:
        spec: the model.
        champion: the champion.
        reference: columns with their bins, as of the training.
        start: first partition date of the window.
        as_of: last partition date of the window.
    """
    if spec.monitoring.reference == "training":
        return reference
    first, last = reference_date(spec, start), reference_date(spec, as_of)
    features, _ = count_features(registry.load_spec(champion), reference, first, last, 1)
    predictions, _ = count_predictions(spec, reference, champion.version, first, last, 1)
    counted = features.columns | predictions.columns
    return {
        name: replace(column, counts=counted.get(name) or [0] * len(column.counts))
        for name, column in reference.items()
    }


def reference_sample(champion: ModelVersion) -> Sample:
    """Read the stored sample of training rows, by column.

    Empty if it cannot be read, because only the report needs it.
    """

    def read() -> Sample:
        table = pq.read_table(registry.download_artifact(champion, "reference.parquet"), partitioning=None)
        return dict(zip(table.column_names, table.columns, strict=True))

    return pages.attempt("the report's sample of training rows", read)[0] or {}
