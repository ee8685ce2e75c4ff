"""Checks whose bounds are learned from a sample's partitions, each with wider bounds to fall back on.

A check is learned at a level: 0 is the narrowest, each further one is wider, and after the last one there is no check.
What it would have said of other partitions is computed from their statistics, as `validation` would of their rows.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perennial.cli.new.partition_statistics import Array, ColumnStatistics, PartitionStatistics

__all__ = [
    "ClassSet",
    "LearnedCheck",
    "NotNull",
    "Range",
    "RowCount",
    "Rule",
    "TextLength",
    "ValueSet",
    "expect",
]

#: Largest bound in a suite; both JSON and DuckDB can represent it.
LARGEST_NUMBER = 1e308
#: Rows that a value needs before the values of a column are taken for all that there are.
MIN_ROWS_PER_VALUE = 5
#: Partitions from which on a number of rows may stop a partition: fewer do not show what is normal.
MIN_CRITICAL_PARTITIONS = 20
#: Rows, and partitions, from which on a new class puts its row into quarantine: fewer do not show all classes.
MIN_CLASS_ROWS, MIN_CLASS_PARTITIONS = 300, 5
#: The fewer partitions, the wider a range: with this many, twice as wide as with very many.
SPARSE = 10
#: Correlation of a column's values with time above which it grows, or shrinks.
TREND = 0.8
#: Bounds of what a calendar can say, by the last word of a column's name.
CALENDAR = {
    "second": (0, 60), "minute": (0, 59), "hour": (0, 24), "day": (0, 366), "weekday": (0, 7), "dow": (0, 7),
    "dayofweek": (0, 7), "dayofyear": (1, 366), "week": (0, 53), "weekofyear": (0, 53), "month": (0, 12),
    "quarter": (0, 4),
}  # fmt: skip
#: Years around those of the sample.
CALENDAR_YEARS = 100


def expect(kind: str, severity: str | None = None, *, notes: str = "", **kwargs: Any) -> dict[str, Any]:
    """An expectation in Great Expectations' format."""
    entry: dict[str, Any] = {"type": kind, "kwargs": kwargs, "meta": {"notes": notes} if notes else {}}
    return entry | ({"severity": severity} if severity else {})


@dataclass(frozen=True)
class LearnedCheck:
    """One check with its bounds.

    Attributes:
        entry: the expectation.
        column: the column; empty for a check of the number of rows.
        low: lower bound; -inf for none.
        high: upper bound; inf for none.
        values: allowed values; None if any is.
        mostly: share of the cells that must be good.
    """

    entry: dict[str, Any]
    column: str = ""
    low: float = -math.inf
    high: float = math.inf
    values: frozenset[Any] | None = None
    mostly: float = 1.0

    @property
    def critical(self) -> bool:
        """Whether it stops a partition, or puts rows into quarantine; a warning is only recorded."""
        return "severity" not in self.entry

    def bad_rows(self, partitions: PartitionStatistics) -> Array:
        """The number of bad rows of each partition; of a range only whether there are any (1, 0)."""
        if not self.column:
            return ((partitions.rows < self.low) | (partitions.rows > self.high)).astype(np.int64)
        column = partitions.columns[self.column]
        if self.values is not None:
            others = [n for value, n in column.values.items() if value not in self.values]
            return np.sum(others, axis=0) if others else np.zeros(len(partitions), np.int64)
        if self.entry["type"] == "expect_column_values_to_not_be_null":
            return partitions.rows - column.filled
        with np.errstate(invalid="ignore"):  # NaN where no cell has a value, which is never outside
            return ((column.low < self.low) | (column.high > self.high)).astype(np.int64)

    def fails(self, partitions: PartitionStatistics) -> Array:
        """Whether each partition fails the check."""
        bad = self.bad_rows(partitions)
        return bad > (1 - self.mostly) * partitions.rows if self.mostly < 1 else bad > 0


class Rule(ABC):
    """How a check is learned.

    Attributes:
        levels: number of levels of its bounds.
        column: name of the column; empty for the number of rows.
    """

    levels = 3
    column = ""

    @abstractmethod
    def learn(self, partitions: PartitionStatistics, level: int) -> LearnedCheck | None:
        """Learn the check from some partitions; None if they do not suggest one."""


@dataclass(frozen=True)
class RowCount(Rule):
    """The number of rows of a partition: too few may stop it, too many are a warning.

    Attributes:
        critical: whether this is the check of too few rows that stops a partition. It is far below what the sample has:
            it is for a file that is cut off.
    """

    critical: bool

    def learn(self, partitions: PartitionStatistics, level: int) -> LearnedCheck | None:
        """Learn bounds from the fewest and the most rows, their spread, and their growth so far."""
        logs = np.log(partitions.rows)
        time = np.arange(len(logs))
        slope = float(np.polyfit(time, logs, 1)[0]) * len(logs) if len(logs) > 2 else 0.0
        fewest, most = int(partitions.rows.min()), int(partitions.rows.max())
        kind = "expect_table_row_count_to_be_between"
        notes = f"The sample's partitions have {fewest} to {most} rows."
        if self.critical:
            if len(partitions) < MIN_CRITICAL_PARTITIONS or level:
                return None
            low = math.floor(fewest * math.exp(min(0.0, slope) - 1 - 2 * float(np.std(logs))))
            return LearnedCheck(expect(kind, min_value=low, notes=notes), low=low) if low >= 1 else None
        factor = 10**level
        low = math.floor(fewest * math.exp(min(0.0, slope)) / 2 / factor)
        high = math.ceil(most * math.exp(min(100.0, max(0.0, slope))) * 3 * factor)
        bounds = {"min_value": low} if low >= 1 else {}
        entry = expect(kind, "warning", **bounds, max_value=high, notes=notes)
        return LearnedCheck(entry, low=low, high=high)


@dataclass(frozen=True)
class NotNull(Rule):
    """A column without missing values in the sample has few in other partitions."""

    column: str

    def learn(self, partitions: PartitionStatistics, level: int) -> LearnedCheck | None:
        """Learn that the column is filled."""
        if (partitions.columns[self.column].filled < partitions.rows).any():
            return None
        mostly = (0.95, 0.8, 0.5)[level]
        entry = expect(
            "expect_column_values_to_not_be_null", "warning", column=self.column, mostly=mostly,
            notes="The sample has no missing values.",
        )  # fmt: skip
        return LearnedCheck(entry, self.column, mostly=mostly)


@dataclass(frozen=True)
class Range(Rule):
    """The numbers of a column: a warning beyond the range of the sample, extended by its width on both sides."""

    column: str
    levels = 2

    def learn(self, partitions: PartitionStatistics, level: int) -> LearnedCheck | None:
        """Learn the range; without a bound where the column moves, wide where it is constant or of a calendar."""
        column = partitions.columns[self.column]
        if column.identifies and column.kind == "integer":
            return None
        lows, highs = _finite(column.low), _finite(column.high)
        if not len(lows):
            return None
        low, high = float(lows.min()), float(highs.max())
        bounds = _calendar_bounds(column, low, high)
        if bounds is None:
            width = high - low or 10 * max(1.0, abs(high))
            span = min(width * (1 + SPARSE / len(partitions)) * 10**level, LARGEST_NUMBER)
            bounds = (max(low - span, -LARGEST_NUMBER), min(high + span, LARGEST_NUMBER))
            bounds = _rounded(*bounds, span, column.kind)
            trend = _trend(column)
            bounds = (-math.inf if trend < 0 else bounds[0], math.inf if trend > 0 else bounds[1])
        named = dict(zip(("min_value", "max_value"), bounds, strict=True))
        entry = expect(
            "expect_column_values_to_be_between", "warning", column=self.column,
            **{name: bound for name, bound in named.items() if math.isfinite(bound)},
            notes=f"In the sample: {low:.6g} to {high:.6g}.",
        )  # fmt: skip
        return LearnedCheck(entry, self.column, *bounds)


@dataclass(frozen=True)
class TextLength(Rule):
    """The texts of a column: a warning if one is far longer than those of the sample."""

    column: str
    levels = 2

    def learn(self, partitions: PartitionStatistics, level: int) -> LearnedCheck | None:
        """Learn the length from the longest text."""
        longest = _finite(partitions.columns[self.column].high)
        if not len(longest):
            return None
        high = max(20, 4 * int(longest.max())) * 10**level
        entry = expect(
            "expect_column_value_lengths_to_be_between", "warning", column=self.column, max_value=high,
            notes=f"In the sample: up to {int(longest.max())} characters.",
        )  # fmt: skip
        return LearnedCheck(entry, self.column, high=high)


@dataclass(frozen=True)
class ValueSet(Rule):
    """The few values of a column: a warning if there is another one."""

    column: str
    levels = 2

    def learn(self, partitions: PartitionStatistics, level: int) -> LearnedCheck | None:
        """Learn the values, if each is frequent."""
        counts = _counts(partitions.columns[self.column])
        if not counts or min(counts.values()) < 2 or sum(counts.values()) < MIN_ROWS_PER_VALUE * len(counts):
            return None
        mostly = (1.0, 0.9)[level]
        some = {} if mostly == 1 else {"mostly": mostly}
        entry = expect(
            "expect_column_values_to_be_in_set", "warning", column=self.column, value_set=list(counts),
            **some, notes="The values in the sample.",
        )  # fmt: skip
        return LearnedCheck(entry, self.column, values=frozenset(counts), mostly=mostly)


@dataclass(frozen=True)
class ClassSet(Rule):
    """The classes of the label: a row with another one goes to quarantine; from few partitions, it is a warning.

    Attributes:
        column: the label.
        always: classes that there are in any case.
    """

    column: str
    always: tuple[Any, ...] = ()
    levels = 2

    def learn(self, partitions: PartitionStatistics, level: int) -> LearnedCheck | None:
        """Learn the classes."""
        counts = _counts(partitions.columns[self.column])
        if not counts:
            return None
        classes = sorted({*counts, *self.always})
        enough = sum(counts.values()) >= MIN_CLASS_ROWS and len(partitions) >= MIN_CLASS_PARTITIONS
        certain = bool(self.always) or (enough and min(counts.values()) >= MIN_ROWS_PER_VALUE)
        entry = expect(
            "expect_column_values_to_be_in_set", None if certain and not level else "warning",
            column=self.column, value_set=classes, notes="The classes of the label.",
        )  # fmt: skip
        return LearnedCheck(entry, self.column, values=frozenset(classes))


def _finite(values: Array) -> Array:
    return values[np.isfinite(values)]


def _counts(column: ColumnStatistics) -> dict[Any, int]:
    """Rows of each value that occurs, in the order of the values."""
    sums = {value: int(counts.sum()) for value, counts in column.values.items()}
    return {value: count for value, count in sums.items() if count}


def _calendar_bounds(column: ColumnStatistics, low: float, high: float) -> tuple[float, float] | None:
    """The bounds of a column that is a part of a date, by its name; None if it is none."""
    words: Sequence[str] = re.split(
        r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column.name).lower().strip("_")
    )
    word = words[-1].removesuffix("s") if words else ""
    if word in ("year", "yr") and 1000 <= low <= high <= 3000:
        return math.floor(low) - CALENDAR_YEARS, math.ceil(high) + CALENDAR_YEARS
    bounds = CALENDAR.get(word)
    return bounds if bounds and bounds[0] <= low and high <= bounds[1] else None


def _trend(column: ColumnStatistics) -> int:
    """Whether a column's values move with time: 1 upwards, -1 downwards, 0 not, or not that it can be seen."""
    middle = _finite(column.low / 2 + column.high / 2)
    if len(middle) < 4 or np.ptp(middle) == 0:
        return 0
    # by rank: a single value that is far off has no great influence
    ranks = np.argsort(np.argsort(middle, kind="stable"), kind="stable")
    time = np.arange(len(ranks)) - (len(ranks) - 1) / 2
    correlation = float(ranks @ time / (time @ time))  # both have the numbers from 0 on
    return int(np.sign(correlation)) if abs(correlation) >= TREND else 0


def _rounded(low: float, high: float, span: float, kind: str) -> tuple[float, float]:
    """Bounds that are easy to read: whole, or with two more digits than the span."""
    if kind == "integer":
        return math.floor(low), math.ceil(high)
    digits = 2 - math.floor(math.log10(span))
    return round(low, digits), round(high, digits)
