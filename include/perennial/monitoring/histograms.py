"""Bin counts of columns, on the bins of a champion's training rows, and the PSI between them.

The bins are computed once, at training, and stored with the model (``reference.json``): indices over different bins
could not be compared from one week to the next. DuckDB counts the rows in one pass.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from perennial.core.errors import ArtifactError
from perennial.core.partitions import DAILY, Cadence
from perennial.core.sql import NUMERIC_SQL_TYPES, batch_rows, quote_identifier, text_literal
from perennial.storage.delta_tables import PARTITION

PREDICTION = "prediction"

FORMAT = 1
#: Bins of a numeric column: deciles.
BINS = 10
#: Most categories with a separate bin; the others share one.
MAX_CATEGORIES = 50
#: Share that an empty bin counts as, where PSI would divide by zero; the same value as in Evidently.
EMPTY_BIN_SHARE = 1e-4
#: Most cells from which exact quantiles are computed; with more, they are computed from a sample of the rows. Counts
#: are always exact.
MAX_QUANTILE_CELLS = 4_000_000
#: Columns that the hash of a row reads at most, evenly spaced: a query of all columns of a wide table needs too much
#: memory, for each thread.
MAX_HASHED_COLUMNS = 200
#: Longest category that is stored as it is. Where one is longer, or the column is personal, values are counted in 16
#: groups by the first digit of their hash, from which no value can be recovered.
MAX_CATEGORY_LENGTH = 64
#: Columns that are counted by one statement: each needs about ten aggregates, which use memory.
COLUMNS_PER_QUERY = 64
#: Window lengths in days whose noise floor is computed, in addition to the window of the policy.
_WINDOW_LENGTHS = (1, 2, 4, 7, 14, 28, 56, 112, 224)


@dataclass(frozen=True)
class ReferenceColumn:
    """The bins of one column, and the training rows counted on them.

    Attributes:
        kind: ``numeric`` or ``categorical``.
        counts: number of training rows in each bin, then without a value: len(edges or categories) + 2 numbers.
        edges: numeric columns only: upper bounds (inclusive) of all bins but the last, ascending.
        categories: categorical columns only: the category of each bin but the last, which counts all others.
        hashed: whether the categories are the first digit of the values' MD5 sums.
        personal: whether it is a numeric column of personal data, of which only missing values are counted.
        noise_floors: highest PSI of any window within the training rows, by the window's length in partitions; without
            lengths for which it cannot be computed.
    """

    kind: str
    counts: list[int]
    edges: list[float] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    hashed: bool = False
    personal: bool = False
    noise_floors: dict[int, float] = field(default_factory=dict)

    def noise_floor(self, days: int) -> float:
        """PSI that a window of ``days`` partitions may reach without drift; 0 if it is not known.

        Shorter windows are noisier, so that a length that was not computed uses the floor of the next shorter one. A
        window whose partitions were not counted, 0, uses that of the longest.
        """
        shorter = [n for n in self.noise_floors if n <= days or not days]
        nearest = max(shorter) if shorter else min(self.noise_floors, default=0)
        return self.noise_floors.get(nearest, 0.0)

    @property
    def null_share(self) -> float:
        """Share of rows without a value, 0 to 1."""
        total = sum(self.counts)
        return self.counts[-1] / total if total else 0.0

    @property
    def is_constant(self) -> bool:
        """Whether all values lie in one bin, so that nothing can be compared."""
        return sum(c > 0 for c in self.counts[:-1]) < 2


@dataclass(frozen=True)
class BinCounts:
    """The rows of a window, counted on the bins of a reference.

    Attributes:
        rows: number of rows of the window.
        columns: by column, the number of rows in each bin, as in `ReferenceColumn.counts`; None if it is missing.
        days: number of partitions of the window; 0 if they were not counted.
    """

    rows: int
    columns: dict[str, list[int] | None]
    days: int = 0


def make_reference(
    con: duckdb.DuckDBPyConnection,
    relation: str,
    numeric: Sequence[str],
    categorical: Sequence[str],
    *,
    window: int = 28,
    min_rows: int = 1000,
    personal: Collection[str] = (),
    cadence: Cadence = DAILY,
) -> dict[str, Any]:
    """Compute the bins of a model's reference, and count the training rows in them.

    Args:
        con: connection that has the relation.
        relation: a table or view that can be read several times: the training rows with ``partition_date``, features
            and prediction.
        numeric: names of the numeric columns.
        categorical: names of the categorical columns.
        window: length of the windows that will be compared with the reference, in partitions.
        min_rows: windows with fewer rows are ignored in the noise floors.
        personal: columns of personal data, of which neither categories nor edges are stored.
        cadence: of the partitions.

    Returns:
        The content of ``reference.json``.
    """
    types = _types(con, relation)
    columns = {c: ReferenceColumn("numeric", []) for c in numeric} | {
        c: ReferenceColumn("categorical", []) for c in categorical
    }
    columns |= _cut_edges(con, relation, [c for c in numeric if c not in personal], types)
    columns |= {c: ReferenceColumn("numeric", [], personal=True) for c in numeric if c in personal}
    for name in categorical:
        columns[name] = _top_categories(con, relation, name, name in personal)
    days, counts = _count_by_date(con, relation, columns, types)
    content = {}
    for name, column in columns.items():
        content[name] = {
            "kind": column.kind,
            "counts": [int(c) for c in counts[name].sum(axis=0)],
            "edges": column.edges,
            "categories": column.categories,
            "hashed": column.hashed,
            "personal": column.personal,
            "noise_floors": _noise_floors(days, counts[name], window, min_rows, cadence),
        }
    return {
        "format": FORMAT,
        "rows": int(counts[""].sum()),
        "first": days[0] if days else None,
        "last": days[-1] if days else None,
        "window": window,
        "columns": content,
    }


def read_reference(content: Any) -> tuple[int, dict[str, ReferenceColumn]]:
    """Read the content of ``reference.json``.

    Returns:
        The number of training rows, and the columns by name.

    Raises:
        ArtifactError: it is not a reference.
    """
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        columns = {}
        for name, c in content["columns"].items():
            # Every value goes into SQL: only finite numbers and text may.
            column = ReferenceColumn(
                str(c["kind"]),
                [int(x) for x in c["counts"]],
                [float(x) for x in c["edges"]],
                [str(x) for x in c["categories"]],
                bool(c["hashed"]),
                bool(c["personal"]),
                {int(n): float(f) for n, f in c["noise_floors"].items()},
            )
            bins = column.edges if column.kind == "numeric" else column.categories
            if len(column.counts) != len(bins) + 2 or not all(math.isfinite(e) for e in column.edges):
                raise ValueError(f"column {name!r} has {len(column.counts)} counts for {len(bins)} bins")
            columns[str(name)] = column
        return int(content["rows"]), columns
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"the drift reference of the champion cannot be used: {error}",
            "train again: training computes the reference",
        ) from error


def count_bins(
    con: duckdb.DuckDBPyConnection, relation: str, columns: Mapping[str, ReferenceColumn]
) -> BinCounts:
    """Count rows on the bins of a reference, in one pass for every `COLUMNS_PER_QUERY` columns.

    Args:
        con: connection that has the relation.
        relation: a table or view; a stream, which can be read once, for at most `COLUMNS_PER_QUERY` columns.
        columns: the reference.
    """
    types = _types(con, relation)
    counts: dict[str, list[int] | None] = dict.fromkeys(columns)
    rows = 0
    for batch in _column_batches({c: column for c, column in columns.items() if c in types}):
        expressions = [e for c, column in batch.items() for e in _expressions(c, column, types[c])]
        listed = ", ".join(["count(*)", *expressions])
        row = con.execute(f"SELECT {listed} FROM {quote_identifier(relation)}").fetchall()[0]
        rows, values = int(row[0]), iter(row[1:])
        counts |= {c: _bins(column, rows, values) for c, column in batch.items()}
    return BinCounts(rows, counts)


def _column_batches(columns: Mapping[str, ReferenceColumn]) -> Iterator[dict[str, ReferenceColumn]]:
    """Batches of `COLUMNS_PER_QUERY` columns; one empty batch if there are none, to count the rows."""
    names = list(columns)
    for i in range(0, max(len(names), 1), COLUMNS_PER_QUERY):
        yield {c: columns[c] for c in names[i : i + COLUMNS_PER_QUERY]}


def sample_rows(
    con: duckdb.DuckDBPyConnection,
    relation: str,
    *,
    n: int,
    seed: int = 0,
    columns: Sequence[str] | None = None,
    personal: Collection[str] = (),
) -> pa.Table:
    """Draw a deterministic sample of a relation, by the hash of each row.

    Args:
        con: connection that has the relation.
        relation: a table or view.
        n: number of rows; fewer of a relation with very many columns (`batch_rows`).
        seed: seed of the hash.
        columns: columns of the sample; all when not given.
        personal: columns that are omitted, as is the partition column.
    """
    types = _types(con, relation)
    selected = types if columns is None else columns
    sampled = [c for c in selected if c not in personal and c != PARTITION]
    row_hash = _row_hash(types, int(seed))
    source = quote_identifier(relation)
    rows = batch_rows(int(n), len(sampled))
    if len(sampled) <= MAX_HASHED_COLUMNS:
        listed = ", ".join(map(quote_identifier, sampled)) or "1 AS __nothing"
        few: pa.Table = con.sql(
            f"SELECT {listed} FROM {source} ORDER BY {row_hash} LIMIT {rows}"
        ).to_arrow_table()
        return few
    # Some columns at a time: a query that finds the first rows holds many of each column, for each thread.
    highest = f"SELECT max(__hash) FROM (SELECT {row_hash} AS __hash FROM {source} ORDER BY 1 LIMIT {rows})"
    limit = con.execute(highest).fetchall()[0][0]
    columns_read: list[Any] = []
    for start in range(0, len(sampled), MAX_HASHED_COLUMNS):
        block = ", ".join(map(quote_identifier, sampled[start : start + MAX_HASHED_COLUMNS]))
        lowest = f"SELECT {block} FROM {source} WHERE {row_hash} <= {limit or 0}::UBIGINT"
        columns_read += con.sql(f"{lowest} ORDER BY {row_hash} LIMIT {rows}").to_arrow_table().columns
    return pa.table(columns_read, names=sampled)


def _row_hash(columns: Collection[str], seed: int | None = None) -> str:
    """SQL of a row's hash, of at most `MAX_HASHED_COLUMNS` of its columns; the last one is among them."""
    step = -(-len(columns) // MAX_HASHED_COLUMNS) or 1
    read = [quote_identifier(c) for c in [*columns][::-1][::step][::-1]]
    return f"hash({', '.join(read if seed is None else [str(seed), *read])})"


def psi(reference: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Population stability index.

    The sum over bins of (p - q) ln(p / q), which is KL(p, q) + KL(q, p): the symmetric divergence of Kullback and
    Leibler (On information and sufficiency, 1951). The name, and the thresholds 0.1 and 0.2 (or 0.25) for a moderate
    and a large shift, come from credit scoring (Siddiqi, Credit risk scorecards, 2006). A bin that is empty on one side
    counts as `EMPTY_BIN_SHARE`.

    Args:
        reference: rows of each bin, shape (bins,).
        current: rows of each bin, shape (..., bins).

    Returns:
        Shape (...), dimensionless; 0 if the shares are equal.
    """
    from scipy.special import rel_entr

    p = np.maximum(reference / max(reference.sum(), 1), EMPTY_BIN_SHARE)
    q = np.maximum(current / np.maximum(current.sum(axis=-1, keepdims=True), 1), EMPTY_BIN_SHARE)
    return np.asarray((rel_entr(p, q) + rel_entr(q, p)).sum(axis=-1))


def _types(con: duckdb.DuckDBPyConnection, relation: str) -> dict[str, str]:
    rows = con.execute(f"DESCRIBE SELECT * FROM {quote_identifier(relation)}").fetchall()
    return {str(r[0]): str(r[1]) for r in rows}


def _as_number(column: str, sql_type: str) -> str:
    # Text where the reference has numbers becomes null unless it is a number: a jump in nulls, which is drift.
    attempt = "" if sql_type.split("(")[0] in NUMERIC_SQL_TYPES else "TRY_"
    return f"{attempt}CAST({quote_identifier(column)} AS DOUBLE)"


def _as_category(column: str, hashed: bool) -> str:
    text = f"CAST({quote_identifier(column)} AS VARCHAR)"
    return f"md5({text})[1]" if hashed else text


def _expressions(name: str, column: ReferenceColumn, sql_type: str) -> list[str]:
    """SQL aggregates that count one column: numbers up to each edge, or a map of known categories."""
    if column.kind == "numeric":
        # Comparisons were measured to be a third faster than histogram(). In DuckDB, NaN is greater than infinity, so
        # that it is not counted, like a null.
        return [
            f"count_if({_as_number(name, sql_type)} <= {e})"
            for e in (*map(_double_literal, column.edges), "'inf'::DOUBLE")
        ]
    value = _as_category(name, column.hashed)
    # histogram_exact() counts other values under the empty string, which can also be a category: count that separately.
    listed = ", ".join(text_literal(c) for c in column.categories if c)
    return [
        f"count({value})",
        f"count_if({value} = '')",
        f"histogram_exact({value}, [{listed}])" if listed else "NULL",
    ]


def _double_literal(value: float) -> str:
    return f"{value!r}::DOUBLE" if value >= 0 else f"({value!r})::DOUBLE"


def _bins(column: ReferenceColumn, rows: int, values: Iterator[Any]) -> list[int]:
    """Rows of each bin, from the values of `_expressions`."""
    if column.kind == "numeric":
        # count_if() of only nulls is null.
        below = [int(next(values) or 0) for _ in range(len(column.edges) + 1)]
        return [b - a for a, b in zip([0, *below], below, strict=False)] + [rows - below[-1]]
    present, empty, by_category = int(next(values)), int(next(values) or 0), next(values) or {}
    listed = [empty if c == "" else int(by_category.get(c, 0)) for c in column.categories]
    return [*listed, present - sum(listed), rows - present]


def _cut_edges(
    con: duckdb.DuckDBPyConnection, relation: str, columns: list[str], types: dict[str, str]
) -> dict[str, ReferenceColumn]:
    """Compute quantile edges of numeric columns; equal edges are merged."""
    cut: dict[str, ReferenceColumn] = {}
    if not columns:
        return cut
    rows = con.execute(f"SELECT count(*) FROM {quote_identifier(relation)}").fetchall()[0][0]
    step = max(1, math.ceil(rows * len(columns) / MAX_QUANTILE_CELLS))
    condition = f" WHERE {_row_hash(types)} % {step} = 0" if step > 1 else ""
    quantiles = [i / BINS for i in range(1, BINS)]
    for batch in _column_batches({c: ReferenceColumn("numeric", []) for c in columns}):
        numbers = [_as_number(c, types[c]) for c in batch]
        listed = ", ".join(f"quantile_disc({x}, {quantiles}) FILTER (WHERE isfinite({x}))" for x in numbers)
        row = con.execute(f"SELECT {listed} FROM {quote_identifier(relation)}{condition}").fetchall()[0]
        for name, edges in zip(batch, row, strict=True):
            # adding 0.0 turns -0.0 into 0.0
            cut[name] = ReferenceColumn("numeric", [], edges=sorted({float(e) + 0.0 for e in edges or []}))
    return cut


def _top_categories(
    con: duckdb.DuckDBPyConnection, relation: str, column: str, personal: bool
) -> ReferenceColumn:
    def most_frequent(hashed: bool) -> list[str]:
        rows = con.execute(
            f"SELECT {_as_category(column, hashed)} AS __category FROM {quote_identifier(relation)} "
            f"WHERE __category IS NOT NULL GROUP BY ALL ORDER BY count(*) DESC, __category LIMIT {MAX_CATEGORIES}"
        ).fetchall()
        return [str(r[0]) for r in rows]

    if not personal:
        categories = most_frequent(False)
        # The null character can terminate SQL text; such values, and long ones, are grouped by their hash.
        if all(len(c) <= MAX_CATEGORY_LENGTH and "\0" not in c for c in categories):
            return ReferenceColumn("categorical", [], categories=categories)
    return ReferenceColumn("categorical", [], categories=most_frequent(True), hashed=True)


def _count_by_date(
    con: duckdb.DuckDBPyConnection,
    relation: str,
    columns: Mapping[str, ReferenceColumn],
    types: dict[str, str],
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Count the bins of each partition.

    Returns:
        The dates; and by column the counts, shape (dates, bins + 1). The empty name has the number of rows, shape
        (dates,).
    """
    counts: dict[str, list[list[int]]] = {c: [] for c in columns}
    days: dict[str, int] = {}
    for batch in _column_batches(columns):
        expressions = [e for c, column in batch.items() for e in _expressions(c, column, types[c])]
        listed = ", ".join([quote_identifier(PARTITION), "count(*)", *expressions])
        by_day = f"SELECT {listed} FROM {quote_identifier(relation)} GROUP BY 1 ORDER BY 1"
        for row in con.execute(by_day).fetchall():
            days[str(row[0])] = int(row[1])
            values = iter(row[2:])
            for name, column in batch.items():
                counts[name].append(_bins(column, row[1], values))
    sizes = {c: max(len(s.edges), len(s.categories)) + 2 for c, s in columns.items()}
    arrays = {c: np.asarray(v, dtype=np.int64).reshape(len(days), sizes[c]) for c, v in counts.items()}
    return list(days), arrays | {"": np.asarray(list(days.values()), dtype=np.int64)}


def _noise_floors(
    days: list[str], counts: np.ndarray, window: int, min_rows: int, cadence: Cadence
) -> dict[str, float]:
    """Noise floors by window length; after a promotion, predictions cover less than a full window."""
    lengths = sorted({n for n in _WINDOW_LENGTHS if n < window} | {window})
    floors = {str(n): noise_floor(days, counts, n, min_rows, cadence) for n in lengths}
    return {n: floor for n, floor in floors.items() if floor is not None}


def noise_floor(
    days: list[str], counts: np.ndarray, length: int, min_rows: int, cadence: Cadence = DAILY
) -> float | None:
    """The highest PSI between any window of ``length`` partitions in the reference and the whole reference.

    A month of weather differs from a winter of weather, and differences between windows of the training rows are not
    drift.

    Args:
        days: dates of the reference, ascending.
        counts: rows of each bin on each date, shape (dates, bins).
        length: length of the windows, in partitions.
        min_rows: windows with fewer rows are ignored.
        cadence: of the partitions.

    Returns:
        The PSI; None if the reference is shorter than two windows, or no window has enough rows.
    """
    if not days:
        return None
    first = cadence.index(days[0])
    span = cadence.index(days[-1]) - first + 1
    if span < 2 * length:
        return None
    running = np.zeros((span + 1, counts.shape[1]), dtype=np.int64)
    for day, row in zip(days, counts, strict=True):
        running[cadence.index(day) - first + 1] = row
    running = running.cumsum(axis=0)
    windows = running[length:] - running[:-length]
    windows = windows[windows.sum(axis=1) >= min_rows]
    return float(psi(counts.sum(axis=0), windows).max()) if len(windows) else None
