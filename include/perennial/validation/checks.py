"""A check of a partition: its SQL, and its results as metrics of Great Expectations.

A check becomes SQL aggregates over the view of landed files (see `typed_rows.create_landed_view`). `validator` puts the
aggregates of all checks into one query, grouped by file; `Check.metrics` then converts the results to the metrics
of Great Expectations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Literal

from perennial.core.sql import condition_columns, quote_identifier
from perennial.validation._sql_aggregates import all_of, count_where, filter_clause

#: Examples of bad values that a data doc shows.
MAX_EXAMPLES = 20
#: The result of a SQL aggregate, by its text.
AggregateValue = Callable[[str], Any]
Run = Literal["sql", "query", "counts", "type", "batches", "whole"]


@dataclass
class Measurement:
    """What was measured of one check in one file, besides its SQL aggregates.

    Attributes:
        counts: values and how often they occur.
        rows: rows of an author's query.
        result: Great Expectations' result, if it evaluated the check itself.
        error: why the check could not be evaluated.
    """

    counts: list[tuple[Any, int]] = field(default_factory=list)
    rows: int = 0
    result: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class Check:
    """One check, as `check_builder` describes it.

    Attributes:
        label: name of the check in reasons and messages; contains no data values.
        type: Great Expectations' type.
        config: the expectation in Great Expectations' format.
        level: ``row`` or ``table``.
        severity: only ``critical`` checks put rows into quarantine or stop a partition.
        declared: the check is in the suite; otherwise it is built in.
        columns: columns that the check reads.
        where: SQL condition of the rows that are checked (``row_condition``); empty: all.
        considered: SQL condition of the rows that are counted.
        bad: SQL condition of a bad row, never null; empty for uniqueness and for table-level checks.
        unique: columns that must be unique together; empty for other checks.
        bad_is_null: the column of a bad row is null although its cell has a value, which could not be cast.
        keep_first: of rows with the same key, the first of the file is good.
        mostly: share of good rows below which the partition stops; None: only ``quarantine_limit`` applies.
        hidden_if_passed: the data doc shows the check only where it failed.
        limits_event_time: whether the highest value is the partition's `Cadence.event_limit`.
        statistics: SQL aggregates of a table-level check, by metric or by a name of `_sql_aggregates`.
        parameters: SQL aggregates of a file that the conditions use, by the name of the column that holds them.
        windows: SQL window expressions that the conditions use, by the name of the column that holds them.
        mark: the column that marks the bad rows, if no SQL condition does; empty otherwise.
        run: how the check is computed: in SQL, by an author's query, by counts of its values, from the column's type,
            or by Great Expectations itself, a batch of rows or the whole column at a time.
        counted: SQL of the value whose frequencies are counted.
        query: the author's SQL over the rows of one file.
        types: declared type of each column of the feed.
    """

    label: str
    type: str
    config: dict[str, Any]
    level: str
    severity: str = "critical"
    declared: bool = True
    columns: list[str] = field(default_factory=list)
    where: str = ""
    considered: str = "TRUE"
    bad: str = ""
    unique: tuple[str, ...] = ()
    bad_is_null: bool = False
    keep_first: bool = False
    mostly: float | None = None
    hidden_if_passed: bool = False
    limits_event_time: bool = False
    statistics: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    windows: Mapping[str, str] = field(default_factory=dict)
    mark: str = ""
    run: Run = "sql"
    counted: str = ""
    query: str = ""
    types: Mapping[str, str] = field(default_factory=dict)

    @property
    def kwargs(self) -> dict[str, Any]:
        """The expectation's arguments as written."""
        return self.config["kwargs"]  # type: ignore[no-any-return]

    @property
    def all_columns(self) -> set[str]:
        """The columns that its values depend on, those of ``row_condition`` included."""
        return {*self.columns, *condition_columns(self.kwargs.get("row_condition"))}

    @property
    def critical(self) -> bool:
        """Whether the check puts rows into quarantine or stops the partition."""
        return self.severity == "critical"

    @property
    def extended(self) -> bool:
        """Whether its conditions use columns that the view of landed files does not have."""
        return bool(self.parameters or self.windows or self.mark)

    @property
    def in_great_expectations(self) -> bool:
        """Whether Great Expectations itself reads the rows."""
        return self.run in ("batches", "whole")

    @property
    def rows_sql(self) -> str:
        """SQL aggregate: rows that are checked."""
        return count_where(self.where)

    @property
    def non_null_sql(self) -> str:
        """SQL aggregate: checked rows with a value in the (first) column."""
        return f"count({quote_identifier(self.columns[0])})" + filter_clause(self.where)

    @property
    def considered_sql(self) -> str:
        """SQL aggregate: rows that are counted."""
        return count_where(all_of(self.where, self.considered))

    @property
    def bad_sql(self) -> str:
        """SQL aggregate: number of bad rows; for uniqueness, number of distinct values.

        There are no duplicates if that equals `considered_sql`.
        """
        where = all_of(self.where, self.considered)
        if not self.unique:
            return count_where(all_of(where, self.bad))
        return f"count(DISTINCT {self.hash_sql})" + filter_clause(where)

    @property
    def hash_sql(self) -> str:
        """SQL of the hash of the columns that must be unique together."""
        return f"hash({', '.join(quote_identifier(c) for c in self.unique)})"

    @property
    def bad_row(self) -> str:
        """SQL condition of a bad row among all rows; for uniqueness, a join marks the duplicates instead."""
        return all_of(self.where, all_of(self.considered, self.bad))

    def aggregates(self) -> list[str]:
        """The SQL aggregates that the check needs."""
        if self.level == "row":
            return [self.rows_sql, self.considered_sql, self.bad_sql]
        return list(self.statistics.values())

    def metrics(
        self,
        value: AggregateValue,
        columns: list[str],
        bad_rows: int,
        examples: list[Any],
        measured: Measurement,
    ) -> Callable[[str], Any]:
        """Convert results to Great Expectations' metrics; returns a function from name to value.

        Args:
            value: the result of one of `aggregates`, by its SQL text.
            columns: the file's columns, in its order.
            bad_rows: number of bad rows.
            examples: some of their values.
            measured: what else was measured.
        """

        def metric(name: str) -> Any:
            if name.startswith("unexpected_rows_query."):
                return measured.rows if name.endswith("row_count") else examples
            if name == "table.row_count":
                return value(self.rows_sql if self.level == "row" else self.statistics[name])
            if name == "table.columns":
                return columns
            if name == "table.column_count":
                return len(columns)
            if self.run == "counts":
                return _distribution(self, name, measured.counts)
            if (
                name == "column_values.nonnull.unexpected_count"
                and self.type != "expect_column_values_to_not_be_null"
            ):
                missing = value(self.rows_sql) - value(self.non_null_sql)
                return missing - (bad_rows if self.bad_is_null else 0)
            suffix = name.rsplit(".", 1)[1]
            if suffix == "unexpected_count":
                return bad_rows
            if suffix == "filtered_row_count":
                return value(self.considered_sql)
            if suffix == "unexpected_values":
                return examples
            return self._statistic(name, value)

        return metric

    def _statistic(self, name: str, value: AggregateValue) -> Any:
        """The value of a metric of a table-level check."""
        statistics = {key: value(sql) for key, sql in self.statistics.items()}
        if name == "column.unique_proportion":
            return statistics["distinct"] / statistics["non-null"] if statistics["non-null"] else 0
        if name == "column.non_null_proportion":
            return statistics["non-null"] / statistics["rows"] if statistics["rows"] else 0
        if name.startswith("column.distinct_values.not_in_set"):
            if name.endswith(".count"):
                return statistics["outside"]
            return sorted({v for v in statistics["some outside"] or [] if v is not None})
        if name.startswith("column.distinct_values.missing_from_column"):
            present = set(statistics["inside"] or [])
            missing = [v for i, v in enumerate(self.kwargs["value_set"]) if i not in present]
            return len(missing) if name.endswith(".count") else missing
        statistic = statistics.get(name)
        if name in ("column.min", "column.max") and type(statistic) is date:
            # Great Expectations parses bounds given as text only if the value is a datetime.
            return datetime(statistic.year, statistic.month, statistic.day)
        return statistic


def _distribution(check: Check, name: str, counts: list[tuple[Any, int]]) -> Any:
    """A metric of how often values occur.

    The values of a histogram are the indices of its intervals: -1 is below the first one.
    """
    if name == "column.most_common_value":
        return [value for value, _ in counts]
    if name == "column_values.nonnull.count":
        return sum(count for _, count in counts)
    if name == "column.value_counts":
        import pandas as pd

        values = pd.Index([value for value, _ in counts])
        return pd.Series([n for _, n in counts], index=values, name="count", dtype="int64")
    by_interval, intervals = dict(counts), len(check.kwargs["partition_object"]["weights"])
    if name == "below_partition":
        return by_interval.get(-1, 0)
    if name == "above_partition":
        return by_interval.get(intervals, 0)
    return [by_interval.get(i, 0) for i in range(intervals)]
