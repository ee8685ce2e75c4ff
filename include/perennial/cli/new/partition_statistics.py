"""Statistics of a sample by partition, from which the checks of a new model are learned and tried out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perennial.cli.new.samples.sample_reader import COLUMNS_PER_QUERY, Sample, SampleColumn
from perennial.cli.new.templates import ModelDraft
from perennial.core.sql import quote_identifier, text_literal

__all__ = ["ColumnStatistics", "PartitionStatistics", "measure"]

Array = np.ndarray[Any, Any]
#: Columns of which checks are learned: a suite has a limited number of expectations.
MAX_COLUMNS = 300


@dataclass(frozen=True)
class ColumnStatistics:
    """One column in each partition. Arrays have the shape (partitions,).

    Attributes:
        name: its name.
        kind: its type.
        identifies: whether each row of the sample has a value of its own.
        filled: number of cells with a value.
        low: of numbers the lowest finite value, of texts the least length; NaN without any.
        high: the highest one.
        values: number of rows with each value; empty unless there are few.
    """

    name: str
    kind: str
    identifies: bool
    filled: Array
    low: Array
    high: Array
    values: dict[Any, Array]

    def select(self, part: slice) -> ColumnStatistics:
        """The statistics of some partitions."""
        values = {value: counts[part] for value, counts in self.values.items()}
        return replace(
            self, filled=self.filled[part], low=self.low[part], high=self.high[part], values=values
        )


@dataclass(frozen=True)
class PartitionStatistics:
    """The partitions of a sample, in order.

    Attributes:
        days: their dates.
        rows: number of rows, shape (partitions,).
        quarantined: rows that the built-in checks would put into quarantine: no key or event time, an event after its
            partition, a key twice, a number that is infinite.
        columns: the columns of which checks are learned, by name.
        omitted: number of columns that are too many for that.
    """

    days: tuple[str, ...]
    rows: Array
    quarantined: Array
    columns: dict[str, ColumnStatistics]
    omitted: int = 0

    def __len__(self) -> int:
        return len(self.days)

    def select(self, part: slice) -> PartitionStatistics:
        """The statistics of some partitions."""
        columns = {name: column.select(part) for name, column in self.columns.items()}
        return replace(
            self,
            days=self.days[part],
            rows=self.rows[part],
            quarantined=self.quarantined[part],
            columns=columns,
        )


def measure(sample: Sample, draft: ModelDraft, without: set[str], max_values: int) -> PartitionStatistics:
    """Measure the partitions of a sample.

    Args:
        sample: the sample, divided into partitions.
        draft: the decisions about the model.
        without: columns of which nothing is learned.
        max_values: columns with more distinct values have no counts of values.
    """
    eligible = [c for c in sample.columns.values() if c.name not in without]
    # the label first: its classes are checked in any case
    eligible.sort(key=lambda c: c.name != draft.label)
    columns = eligible[:MAX_COLUMNS]
    days = [(str(day), int(n)) for day, n in sample.query(_by_day("count(*)"))]
    quarantined = np.array(
        [n for _, n in sample.query(_by_day(_built_in(sample, draft, [day for day, _ in days])))], np.int64
    )
    measured: dict[str, ColumnStatistics] = {}
    for i in range(0, len(columns), COLUMNS_PER_QUERY):
        for column, infinite in _columns(sample, columns[i : i + COLUMNS_PER_QUERY], max_values, len(days)):
            measured[column.name] = column
            quarantined = quarantined + infinite
    rows = np.array([n for _, n in days], np.int64)
    order = {c.name: measured[c.name] for c in sample.columns.values() if c.name in measured}
    return PartitionStatistics(
        tuple(day for day, _ in days),
        rows,
        np.minimum(quarantined, rows),
        order,
        len(eligible) - len(columns),
    )


def _by_day(aggregates: str) -> str:
    return f"SELECT __day, {aggregates} FROM __dated GROUP BY __day ORDER BY __day"


def _built_in(sample: Sample, draft: ModelDraft, days: list[str]) -> str:
    """SQL aggregate: rows that no partition may have.

    Rows without a key or an event time, later than their partition, or with the key of an earlier row.
    """
    key = [quote_identifier(k) for k in draft.key if k in sample.columns]
    bad = [f"{k} IS NULL" for k in key]
    if draft.event_time:
        time = quote_identifier(draft.event_time)
        limits = (f"{text_literal(d)}: TIMESTAMP '{draft.cadence.event_limit(d)}'" for d in days)
        limit = f"MAP {{{', '.join(limits)}}}[__day]"
        bad += [f"{time} IS NULL", f"coalesce({time} >= {limit}, FALSE)"]
    twice = f"count(*) - count(DISTINCT ({', '.join(key)}, 0))" if len(key) == len(draft.key) and key else "0"
    counted = f"count(*) FILTER (WHERE {' OR '.join(bad)})" if bad else "0"
    return f"({counted} + {twice})::BIGINT"


def _columns(
    sample: Sample, columns: list[SampleColumn], max_values: int, partitions: int
) -> Iterator[tuple[ColumnStatistics, Array]]:
    """Statistics of some columns, and the number of rows of each partition in which one is infinite."""
    aggregates = ", ".join(sql for c in columns for sql in _aggregates(quote_identifier(c.name), c.kind))
    table = np.array([row[1:] for row in sample.query(_by_day(aggregates))], float).reshape(partitions, -1)
    for j, column in enumerate(columns):
        filled, low, high, infinite = table[:, 4 * j : 4 * j + 4].T
        values: dict[Any, Array] = {}
        if column.values and len(column.values) <= max_values and column.kind in ("string", "integer"):
            values = _value_counts(sample, column, partitions)
        yield (
            ColumnStatistics(
                column.name, column.kind, column.unique, filled.astype(np.int64), low, high, values
            ),
            infinite.astype(np.int64),
        )


def _aggregates(cell: str, kind: str) -> list[str]:
    """SQL aggregates of one column: filled cells, lowest and highest number or length, infinite numbers."""
    count = f"count({cell})::DOUBLE"
    if kind == "string":
        return [count, f"min(length({cell}))::DOUBLE", f"max(length({cell}))::DOUBLE", "0"]
    if kind not in ("integer", "number"):
        return [count, "NULL", "NULL", "0"]
    finite = f"FILTER (WHERE isfinite({cell}::DOUBLE))"
    bounds = [f"(min({cell}) {finite})::DOUBLE", f"(max({cell}) {finite})::DOUBLE"]
    infinite = f"count(*) FILTER (WHERE isinf({cell}))::DOUBLE" if kind == "number" else "0"
    return [count, *bounds, infinite]


def _value_counts(sample: Sample, column: SampleColumn, partitions: int) -> dict[Any, Array]:
    cell = quote_identifier(column.name)
    numbers = (
        "SELECT __day, row_number() OVER (ORDER BY __day) - 1 AS __number FROM (SELECT DISTINCT __day "
        "FROM __days)"
    )
    counted = sample.query(
        f"SELECT {cell}, __number, count(*) FROM __dated JOIN ({numbers}) USING (__day) WHERE {cell} IS NOT NULL "
        "GROUP BY ALL"
    )
    values = {value: np.zeros(partitions, np.int64) for value in column.values}
    for value, number, count in counted:
        values[value][int(number)] = count
    return values
