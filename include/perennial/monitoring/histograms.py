"""How far columns have moved from what a champion was trained on: counts on frozen bins, and PSI between them.

The bins are cut once, at training, and stored with the model: an index over bins that are cut anew each time cannot be
compared from one week to the next. Counting is one pass of DuckDB over the rows, whatever their number.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from perennial.core.errors import ArtifactError
from perennial.core.sql import NUMERIC_SQL_TYPES, quote_identifier, text_literal
from perennial.storage.delta_tables import PARTITION

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import pyarrow as pa

PREDICTION = "prediction"

FORMAT = 1
BINS = 10
#: Categories with a bin of their own; the rest share one.
MAX_CATEGORIES = 50
#: Share that an empty bin counts as, where PSI would divide by nothing. Evidently takes the same.
EMPTY_BIN_SHARE = 1e-4
#: Cells that the exact quantiles may read; beyond, they come from a sample of the rows. Counts are always exact.
MAX_QUANTILE_CELLS = 4_000_000
#: Longest category that is kept as it is. Where one is longer, or the column is personal, values are counted in 16
#: groups by the first digit of their hash, from which none can be told.
MAX_CATEGORY_LENGTH = 64
#: Columns counted by one statement: each takes ten aggregates, and each of those some memory.
COLUMNS_PER_QUERY = 64


@dataclass(frozen=True)
class ReferenceColumn:
    """One column of a reference.

    Attributes:
        edges: upper bounds (included) of all bins but the last, ascending; numeric columns.
        categories: one a bin; the last bin takes all others; categorical columns.
        hashed: categories are the first digit of the values' MD5 sums.
        counts: rows a bin in the training rows, then the rows without a value: len(edges or categories) + 2.
        floors: the highest PSI that windows within the training rows showed, by their length in days; lengths for
            which that cannot be known are not there.
    """

    kind: str
    counts: list[int]
    edges: list[float] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    hashed: bool = False
    floors: dict[int, float] = field(default_factory=dict)

    def floor(self, days: int) -> float:
        """What a window of so many days may show without anything being wrong; 0 where that is not known.

        Shorter windows are noisier: where the length itself is not known, the next shorter one that is decides.
        """
        shorter = [n for n in self.floors if n <= days]
        known = max(shorter) if shorter else min(self.floors, default=0)
        return self.floors.get(known, 0.0)

    @property
    def nulls(self) -> float:
        """Share of rows without a value."""
        total = sum(self.counts)
        return self.counts[-1] / total if total else 0.0

    @property
    def constant(self) -> bool:
        """Whether all values fell into one bin: nothing can be compared then."""
        return sum(c > 0 for c in self.counts[:-1]) < 2


@dataclass(frozen=True)
class BinCounts:
    """Rows of a window, and for each column of the reference the rows a bin (as `Column.counts`); None: not there.

    Attributes:
        days: partitions that hold the rows; 0 where nobody counted them.
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
    window_days: int = 28,
    min_rows: int = 1000,
    personal: Collection[str] = (),
) -> dict[str, Any]:
    """The reference of a model, as JSON.

    Args:
        relation: a table or view of ``con`` that can be read several times: the training rows with ``partition_date``,
            features and prediction.
        window_days: length of the windows that will be compared with it.
        min_rows: windows with fewer rows tell nothing about noise.
        personal: columns of personal data, whose categories are not kept.
    """
    types = _types(con, relation)
    columns = {c: ReferenceColumn("numeric", []) for c in numeric} | {
        c: ReferenceColumn("categorical", []) for c in categorical
    }
    columns |= _edges(con, relation, list(numeric), types)
    for column in categorical:
        columns[column] = _categories(con, relation, column, column in personal)
    days, counts = _count_by_date(con, relation, columns, types)
    found = {}
    for column, shape in columns.items():
        total = counts[column].sum(axis=0)
        found[column] = {
            "kind": shape.kind,
            "counts": [int(c) for c in total],
            "edges": shape.edges,
            "categories": shape.categories,
            "hashed": shape.hashed,
            "floors": _noise_floors(days, counts[column], window_days, min_rows),
        }
    return {
        "format": FORMAT,
        "rows": int(counts[""].sum()),
        "first": days[0] if days else None,
        "last": days[-1] if days else None,
        "window_days": window_days,
        "columns": found,
    }


def read_reference(content: Any) -> tuple[int, dict[str, ReferenceColumn]]:
    """Rows and columns of a stored reference.

    Raises:
        ArtifactError: it is not one.
    """
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        columns = {}
        for column, c in content["columns"].items():
            # Every value goes into SQL: nothing but finite numbers and text may.
            shape = ReferenceColumn(
                str(c["kind"]),
                [int(x) for x in c["counts"]],
                [float(x) for x in c["edges"]],
                [str(x) for x in c["categories"]],
                bool(c["hashed"]),
                {int(n): float(f) for n, f in c["floors"].items()},
            )
            bins = shape.edges if shape.kind == "numeric" else shape.categories
            if len(shape.counts) != len(bins) + 2 or not all(math.isfinite(e) for e in shape.edges):
                raise ValueError(f"column {column!r} has {len(shape.counts)} counts for {len(bins)} bins")
            columns[str(column)] = shape
        return int(content["rows"]), columns
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"the drift reference of the champion cannot be used: {error}",
            "train again: the reference is made with the model",
        ) from error


def count_bins(
    con: duckdb.DuckDBPyConnection, relation: str, columns: Mapping[str, ReferenceColumn]
) -> BinCounts:
    """Count the rows of ``relation`` on a reference's bins, in one pass for every `PASS` columns.

    Args:
        relation: a table or view; a stream, which can be read once, for at most `PASS` columns.
    """
    types = _types(con, relation)
    found: dict[str, list[int] | None] = dict.fromkeys(columns)
    rows = 0
    for part in _column_batches({c: s for c, s in columns.items() if c in types}):
        expressions = [e for c, s in part.items() for e in _expressions(c, s, types[c])]
        listed = ", ".join(["count(*)", *expressions])
        row = con.execute(f"SELECT {listed} FROM {quote_identifier(relation)}").fetchall()[0]
        rows, values = int(row[0]), iter(row[1:])
        found |= {c: _bins(s, rows, values) for c, s in part.items()}
    return BinCounts(rows, found)


def _column_batches(columns: Mapping[str, ReferenceColumn]) -> Iterator[dict[str, ReferenceColumn]]:
    """The columns in parts of `PASS`; one empty part where there are none, so that rows are counted."""
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
    """At most ``n`` rows, spread over the whole relation, without personal columns; the same ones each time."""
    types = _types(con, relation)
    wanted = types if columns is None else columns
    keep = [c for c in wanted if c not in personal and c != PARTITION]
    listed = ", ".join(quote_identifier(c) for c in keep) or "1 AS nothing"
    everything = ", ".join(quote_identifier(c) for c in types)
    query = f"SELECT {listed} FROM {quote_identifier(relation)} ORDER BY hash({int(seed)}, {everything}) LIMIT {int(n)}"
    return con.sql(query).to_arrow_table()


def psi(reference: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Population stability index: sum over bins of (p - q) ln(p / q), which is KL(p, q) + KL(q, p).

    Kullback and Leibler's symmetric divergence (On Information and Sufficiency, 1951); known by this name, and with
    0.1 and 0.2 (or 0.25) as marks of some and of much movement, from credit scoring (Siddiqi, Credit Risk Scorecards,
    2006). A bin that is empty on one side counts as a share of 0.0001.

    Args:
        reference: counts, shape (bins,).
        current: counts, shape (..., bins).

    Returns:
        Shape (...); 0 is no movement.
    """
    import numpy as np
    from scipy.special import rel_entr

    p = np.maximum(reference / max(reference.sum(), 1), EMPTY_BIN_SHARE)
    q = np.maximum(current / np.maximum(current.sum(axis=-1, keepdims=True), 1), EMPTY_BIN_SHARE)
    return np.asarray((rel_entr(p, q) + rel_entr(q, p)).sum(axis=-1))


def _types(con: duckdb.DuckDBPyConnection, relation: str) -> dict[str, str]:
    found = con.execute(f"DESCRIBE SELECT * FROM {quote_identifier(relation)}").fetchall()
    return {str(r[0]): str(r[1]) for r in found}


def _as_number(column: str, kind: str) -> str:
    # Text where the reference has numbers becomes null where it is no number: a jump in nulls, which is drift.
    return f"{'' if kind.split('(')[0] in NUMERIC_SQL_TYPES else 'TRY_'}CAST({quote_identifier(column)} AS DOUBLE)"


def _as_category(column: str, hashed: bool) -> str:
    text = f"CAST({quote_identifier(column)} AS VARCHAR)"
    return f"md5({text})[1]" if hashed else text


def _expressions(column: str, shape: ReferenceColumn, kind: str) -> list[str]:
    """What counts one column: for numbers the rows up to each edge, for text a map of the known categories."""
    if shape.kind == "numeric":
        # Counting by comparison was measured a third faster than histogram(), and is clear about NaN: it is above
        # everything, infinity included, and so never counted, as a null is.
        return [
            f"count_if({_as_number(column, kind)} <= {e})"
            for e in (*map(_literal, shape.edges), "'inf'::DOUBLE")
        ]
    value = _as_category(column, shape.hashed)
    # histogram_exact() puts the unknown ones under the empty string, which can be a category itself: counted apart.
    known = ", ".join(text_literal(c) for c in shape.categories if c)
    return [
        f"count({value})",
        f"count_if({value} = '')",
        f"histogram_exact({value}, [{known}])" if known else "NULL",
    ]


def _literal(value: float) -> str:
    return f"{value!r}::DOUBLE" if value >= 0 else f"({value!r})::DOUBLE"


def _bins(shape: ReferenceColumn, rows: int, values: Any) -> list[int]:
    """Rows a bin from the values of `_expressions`."""
    if shape.kind == "numeric":
        # count_if() of nothing but nulls is null.
        below = [int(next(values) or 0) for _ in range(len(shape.edges) + 1)]
        return [b - a for a, b in zip([0, *below], below, strict=False)] + [rows - below[-1]]
    present, empty, found = int(next(values)), int(next(values) or 0), next(values) or {}
    known = [empty if c == "" else int(found.get(c, 0)) for c in shape.categories]
    return [*known, present - sum(known), rows - present]


def _edges(
    con: duckdb.DuckDBPyConnection, relation: str, columns: list[str], types: dict[str, str]
) -> dict[str, ReferenceColumn]:
    """Quantile edges of numeric columns; equal ones fall together, so that a column of mostly zeros has few bins."""
    found: dict[str, ReferenceColumn] = {}
    if not columns:
        return found
    rows = con.execute(f"SELECT count(*) FROM {quote_identifier(relation)}").fetchall()[0][0]
    every = max(1, math.ceil(rows * len(columns) / MAX_QUANTILE_CELLS))
    everything = ", ".join(quote_identifier(c) for c in types)
    where = f" WHERE hash({everything}) % {every} = 0" if every > 1 else ""
    cuts = [i / BINS for i in range(1, BINS)]
    for part in _column_batches({c: ReferenceColumn("numeric", []) for c in columns}):
        numbers = {c: _as_number(c, types[c]) for c in part}
        asked = [f"quantile_disc({x}, {cuts}) FILTER (WHERE isfinite({x}))" for x in numbers.values()]
        row = con.execute(f"SELECT {', '.join(asked)} FROM {quote_identifier(relation)}{where}").fetchall()[0]
        for column, edges in zip(part, row, strict=True):
            found[column] = ReferenceColumn(
                "numeric", [], edges=sorted({float(e) + 0.0 for e in edges or []})
            )
    return found


def _categories(
    con: duckdb.DuckDBPyConnection, relation: str, column: str, personal: bool
) -> ReferenceColumn:
    def top(hashed: bool) -> list[str]:
        rows = con.execute(
            f"SELECT {_as_category(column, hashed)} AS c FROM {quote_identifier(relation)} WHERE c IS NOT NULL "
            f"GROUP BY c ORDER BY count(*) DESC, c LIMIT {MAX_CATEGORIES}"
        ).fetchall()
        return [str(r[0]) for r in rows]

    if not personal:
        plain = top(False)
        # The null character ends SQL text in places; such values, and long ones, are grouped by their hash.
        if all(len(c) <= MAX_CATEGORY_LENGTH and "\0" not in c for c in plain):
            return ReferenceColumn("categorical", [], categories=plain)
    return ReferenceColumn("categorical", [], categories=top(True), hashed=True)


def _count_by_date(
    con: duckdb.DuckDBPyConnection,
    relation: str,
    columns: Mapping[str, ReferenceColumn],
    types: dict[str, str],
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Dates, and for each column the counts, shape (dates, bins + 1); under "" the rows, shape (dates,)."""
    import numpy as np

    counts: dict[str, list[list[int]]] = {c: [] for c in columns}
    days: dict[str, int] = {}
    for part in _column_batches(columns):
        expressions = [e for c, s in part.items() for e in _expressions(c, s, types[c])]
        listed = ", ".join([quote_identifier(PARTITION), "count(*)", *expressions])
        by_day = f"SELECT {listed} FROM {quote_identifier(relation)} GROUP BY 1 ORDER BY 1"
        for row in con.execute(by_day).fetchall():
            days[str(row[0])] = int(row[1])
            values = iter(row[2:])
            for column, shape in part.items():
                counts[column].append(_bins(shape, row[1], values))
    sizes = {c: max(len(s.edges), len(s.categories)) + 2 for c, s in columns.items()}
    found = {c: np.asarray(v, dtype=np.int64).reshape(len(days), sizes[c]) for c, v in counts.items()}
    return list(days), found | {"": np.asarray(list(days.values()), dtype=np.int64)}


def _noise_floors(days: list[str], counts: np.ndarray, window_days: int, min_rows: int) -> dict[str, float]:
    """Floors by length: a champion's predictions begin with its promotion, and cover less than a window at first."""
    lengths = sorted({n for n in (1, 2, 4, 7, 14, 28, 56, 112, 224) if n < window_days} | {window_days})
    found = {str(n): noise_floor(days, counts, n, min_rows) for n in lengths}
    return {n: f for n, f in found.items() if f is not None}


def noise_floor(days: list[str], counts: np.ndarray, length: int, min_rows: int) -> float | None:
    """The highest PSI of any window of ``length`` days within the reference against the whole.

    A month of weather differs from a winter of weather without anything being wrong; what the training rows did among
    themselves is no drift. Known only where the reference is at least two windows long.
    """
    from datetime import date

    import numpy as np

    if not days:
        return None
    first = date.fromisoformat(days[0])
    span = (date.fromisoformat(days[-1]) - first).days + 1
    if span < 2 * length:
        return None
    running = np.zeros((span + 1, counts.shape[1]), dtype=np.int64)
    for day, row in zip(days, counts, strict=True):
        running[(date.fromisoformat(day) - first).days + 1] = row
    running = running.cumsum(axis=0)
    windows = running[length:] - running[:-length]
    windows = windows[windows.sum(axis=1) >= min_rows]
    return float(psi(counts.sum(axis=0), windows).max()) if len(windows) else None
