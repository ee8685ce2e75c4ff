"""Checks that Great Expectations itself evaluates, with its pandas engine, on rows of a partition.

Expectations that look at one value at a time are evaluated batch by batch, each distinct value of a batch once, so that
memory does not grow with the partition. Those of a column's type depend on the type alone, so a column of at most two
values stands for all. Only the others need the whole column in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa

from perennial.core import patches
from perennial.core.errors import DataError
from perennial.core.settings import settings
from perennial.core.sql import quote_identifier
from perennial.validation._sql_aggregates import all_of
from perennial.validation.checks import MAX_EXAMPLES, Check, Measurement

if TYPE_CHECKING:
    import pandas as pd

BATCH_ROWS = 65_536
#: Bytes that Great Expectations needs for each number of a column, with its copies.
_BYTES_PER_NUMBER = 64
#: Share of the step's memory that such a column may use.
_MEMORY_SHARE = 0.25
_RESULT_FORMAT = {"result_format": "BASIC", "partial_unexpected_count": MAX_EXAMPLES}
_ARROW_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_(), "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
}  # fmt: skip
#: A value of each type.
_VALUES: dict[str, Any] = {
    "string": "x", "integer": 1, "number": 0.5, "boolean": True, "date": date(2000, 1, 1),
    "timestamp": datetime(2000, 1, 1),
}  # fmt: skip


class EvaluationError(Exception):
    """Great Expectations raised an error of its own; the argument is its message, which may quote values."""


def evaluate(expectation: Any, frame: pd.DataFrame, result_format: str = "BASIC") -> Any:
    """Have Great Expectations evaluate an expectation on rows.

    Args:
        expectation: of Great Expectations.
        frame: the rows.
        result_format: of Great Expectations.

    Returns:
        Its result.

    Raises:
        EvaluationError: it cannot be evaluated.
    """
    from great_expectations.execution_engine import PandasExecutionEngine
    from great_expectations.validator.metrics_calculator import MetricsCalculator

    engine = PandasExecutionEngine(batch_data_dict={"rows": frame})
    options = {"result_format": {**_RESULT_FORMAT, "result_format": result_format}}
    quiet, once = patches.great_expectations_quiet(), patches.great_expectations_schema_checked_once()
    with quiet, once, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas, about patterns with groups and numbers that overflow
        try:
            needed = expectation.get_validation_dependencies(engine, dict(options)).metric_configurations
            metrics, failed = MetricsCalculator(engine).compute_metrics(list(needed.values()))
            for failure in failed.values():
                raise EvaluationError(failure["exception_info"]["exception_message"])
            return expectation.metrics_validate(metrics, dict(options), engine)
        except EvaluationError:
            raise
        except Exception as error:  # of any library that it uses
            raise EvaluationError(f"{type(error).__name__}: {error}") from None


def evaluate_type(check: Check, expectation: Any, counts: dict[str, int]) -> Any:
    """Evaluate an expectation of a column's type.

    Args:
        check: the check.
        expectation: of Great Expectations, without ``mostly`` and ``row_condition``.
        counts: the check's statistics, by name.

    Returns:
        Great Expectations' result, with the counts of the partition.

    Raises:
        EvaluationError: Great Expectations does not know the type.
    """
    column, declared = check.columns[0], check.types[check.columns[0]]
    values = [_VALUES[declared]] if counts["all non-null"] else []
    values += [None] if counts["all rows"] > counts["all non-null"] else []
    frame = pa.table({column: pa.array(values, _ARROW_TYPES[declared])}).to_pandas()
    result = evaluate(expectation, frame)
    if (
        "element_count" in result.result
    ):  # values were looked at one by one, because pandas has no type for them
        _scale(check, result, counts)
    return result


def _scale(check: Check, result: Any, counts: dict[str, int]) -> None:
    """Give a result of one value and a missing one the counts of the partition, where all values are alike."""
    rows, values = counts["rows"], counts["non-null"]
    bad = values if result.result["unexpected_count"] else 0
    result.success = not bad or check.kwargs.get("mostly", 1) <= 0
    result.result = {
        "element_count": rows,
        "unexpected_count": bad,
        "unexpected_percent": 100 * bad / values if values else None,
        "missing_count": rows - values,
        "missing_percent": 100 * (rows - values) / rows if rows else None,
    }


def evaluate_whole(
    con: duckdb.DuckDBPyConnection, check: Check, expectation: Any, file: int, view: str
) -> Any:
    """Have Great Expectations evaluate an expectation on a whole numeric column.

    Args:
        con: connection with the view.
        check: the check.
        expectation: of Great Expectations, without ``row_condition``.
        file: index of the file.
        view: the rows.

    Raises:
        DataError: the column does not fit into the step's memory.
        EvaluationError: a metric could not be computed.
    """
    column = quote_identifier(check.columns[0])
    where = all_of(all_of(check.where, f"__file = {file}"), f"{column} IS NOT NULL")
    ((rows,),) = con.execute(f"SELECT count(*) FROM {view} WHERE {where}").fetchall()
    needed, available = rows * _BYTES_PER_NUMBER >> 20, int(settings().memory_mb * _MEMORY_SHARE)
    if needed > available:
        raise DataError(
            f"Great Expectations itself evaluates it, which takes about {needed} MiB for {rows:,} rows, "
            f"a quarter of PERENNIAL_MEMORY_MB is {available} MiB",
            f"set PERENNIAL_MEMORY_MB to {int(needed / _MEMORY_SHARE) + 1}, or {_streaming_alternative(check)}",
        )
    table = con.sql(f"SELECT {column} FROM {view} WHERE {where}").to_arrow_table()
    return evaluate(expectation, table.rename_columns(check.columns[:1]).to_pandas())


def _streaming_alternative(check: Check) -> str:
    if check.type == "expect_column_kl_divergence_to_be_less_than":
        return "give the expectation a partition_object: it then streams"
    return "remove the expectation"


def find_bad_rows(
    con: duckdb.DuckDBPyConnection, check: Check, expectations: list[Any], view: str, table: str
) -> dict[int, Measurement]:
    """Have Great Expectations find the bad rows of a check of single values, batch by batch.

    Args:
        con: connection with the view.
        check: the check.
        expectations: of Great Expectations, without ``mostly`` and ``row_condition``; each is evaluated on the values
            that meet those before it.
        view: the rows.
        table: the temporary table that gets the bad rows: ``__in_file`` and ``__bad_row``.

    Returns:
        The files of which not all values could be evaluated, with the error.
    """
    column = quote_identifier(check.columns[0])
    where = all_of(check.where, f"{column} IS NOT NULL")
    failed: dict[int, Measurement] = {}
    bad_rows: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
    reader = con.sql(f"SELECT __file, __row, {column} FROM {view} WHERE {where}").to_arrow_reader(BATCH_ROWS)
    try:
        for batch in reader:
            for in_files, at_rows, bad in _parts(batch, check.columns[0], expectations, failed):
                bad_rows.append((in_files[bad], at_rows[bad]))
    finally:
        reader.close()
    files, rows = (np.concatenate([part[i] for part in bad_rows] or [np.zeros(0, np.int64)]) for i in (0, 1))
    con.register("__bad_rows", pa.table({"__in_file": pa.array(files), "__bad_row": pa.array(rows)}))
    con.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT * FROM __bad_rows")
    con.unregister("__bad_rows")
    return failed


def _parts(
    batch: pa.RecordBatch, column: str, expectations: list[Any], failed: dict[int, Measurement]
) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Evaluate a batch; yields file, row and whether it is bad, of the rows that could be evaluated."""
    files, rows = (batch.column(i).to_numpy().astype(np.int64) for i in (0, 1))
    texts = batch.column(2)
    try:
        yield files, rows, _bad_values(texts, column, expectations)
        return
    except EvaluationError:
        pass
    # Only the files with such a value are stopped.
    for file in np.unique(files):
        within = files == file
        try:
            yield (
                files[within],
                rows[within],
                _bad_values(texts.filter(pa.array(within)), column, expectations),
            )
        except EvaluationError as error:
            failed.setdefault(int(file), Measurement(error=error))


def _bad_values(texts: pa.Array[Any], column: str, expectations: list[Any]) -> np.ndarray[Any, Any]:
    """Whether each value is bad; each distinct one is evaluated once."""
    import pandas as pd

    encoded = texts.dictionary_encode()
    frame = pd.DataFrame({column: encoded.dictionary.to_pandas()})
    bad = np.zeros(len(frame), bool)
    for expectation in expectations:
        remaining = frame[~bad]
        bad[evaluate(expectation, remaining, "COMPLETE").result.get("unexpected_index_list") or []] = True
    return np.take(bad, encoded.indices.to_numpy())
