"""Evaluation of checks by Great Expectations, from metrics that DuckDB has computed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from perennial.core import patches
from perennial.core.errors import PerennialError, SpecError
from perennial.core.partitions import DAILY, Cadence
from perennial.core.redaction import redacted_text
from perennial.core.sql import HIDDEN_VALUE
from perennial.validation import _gx_engine
from perennial.validation.checks import MAX_EXAMPLES, Check, Measurement

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
#: Table-level expectations of a column whose observed value does not reveal a value of a single row.
_COUNTS = {
    "expect_column_to_exist", "expect_column_unique_value_count_to_be_between",
    "expect_column_proportion_of_unique_values_to_be_between",
    "expect_column_proportion_of_non_null_values_to_be_between", "expect_column_type_to_be",
    "expect_column_values_to_be_of_type", "expect_column_values_to_be_in_type_list", "unexpected_rows_expectation",
}  # fmt: skip
#: Values of an observed distribution that a result keeps.
MAX_DETAILS = 200
_RESULT_FORMAT = {"result_format": "BASIC", "partial_unexpected_count": MAX_EXAMPLES}


@dataclass
class ValidationOutcome:
    """The result of validating one partition.

    Attributes:
        day: partition date.
        rows: rows in the file.
        quarantined: rows that go to quarantine.
        results: Great Expectations' results, one for each check, in order.
        bad_rows_by_check: number of bad rows of each critical row-level check, by label.
        stopped: why the partition must not be published; empty if it may.
        declared: expectations in the suite.
        evaluated: expectations of the suite that were evaluated.
        in_great_expectations: labels of those that Great Expectations itself evaluated on the rows, not SQL.
    """

    day: str
    rows: int
    quarantined: int = 0
    results: list[Any] = field(default_factory=list)
    bad_rows_by_check: dict[str, int] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    declared: int = 0
    evaluated: int = 0
    in_great_expectations: list[str] = field(default_factory=list)


class ExpectationEvaluator:
    """Evaluates one check on several files, one after another.

    Args:
        check: the check.
        personal: columns of personal data, whose values no result may show.
        hides_values: show nothing of an error that may quote the data.
        cadence: of the partitions.
    """

    def __init__(
        self, check: Check, personal: list[str], *, hides_values: bool = False, cadence: Cadence = DAILY
    ) -> None:
        self.check = check
        self._cadence = cadence
        # The columns of a query are not known.
        self._personal = bool(personal if check.query else check.all_columns & set(personal))
        self._hides_values = hides_values or self._personal
        self._expectation: Any = None
        self._cache: dict[tuple[str, int], Any] = {}

    def evaluate(
        self,
        outcome: ValidationOutcome,
        aggregates: dict[str, Any],
        columns: list[str],
        bad_rows: int,
        examples: list[Any],
        measured: Measurement,
    ) -> None:
        """Evaluate the check for one file, and add its result and consequences to the outcome.

        Args:
            outcome: the outcome; changed in place.
            aggregates: results of the check's aggregates, by their SQL.
            columns: the file's columns.
            bad_rows: number of bad rows.
            examples: some of their values.
            measured: what was measured besides the aggregates.

        Raises:
            SpecError: Great Expectations refuses the check's arguments.
        """
        check = self.check
        outcome.declared += check.declared
        if check.in_great_expectations:
            outcome.in_great_expectations.append(check.label)
        if check.hidden_if_passed and not bad_rows:
            return
        result = self._result(outcome.day, aggregates, columns, bad_rows, examples, measured)
        outcome.results.append(result)
        if result.exception_info.get("raised_exception"):
            cause = str(result.exception_info["exception_message"])
            outcome.stopped.append(f"{check.label} could not be evaluated: {cause[:300]}")
            return
        outcome.evaluated += check.declared
        if self._personal and check.level == "table" and check.type not in _COUNTS:
            result.result = {"observed_value": _hidden_observation(check)}
        _tidy(result)
        if not check.critical:
            return
        if check.level == "table":
            if not result.success:
                outcome.stopped.append(_explain(check, result))
            return
        if bad_rows:
            counts = outcome.bad_rows_by_check
            counts[check.label] = counts.get(check.label, 0) + bad_rows
        if check.mostly is not None and not result.success:
            share = 1 - bad_rows / max(1, aggregates[check.considered_sql])
            outcome.stopped.append(
                f"{check.label}: {share:.2%} of the rows are good, mostly requires {check.mostly:.2%}"
            )

    def _result(
        self,
        day: str,
        aggregates: dict[str, Any],
        columns: list[str],
        bad_rows: int,
        examples: list[Any],
        measured: Measurement,
    ) -> Any:
        """Great Expectations' result of the check for one file."""
        if self._expectation is None or self.check.limits_event_time:
            self._expectation, self._cache = gx_expectation(self.check, self._cadence.event_limit(day)), {}
        expectation, check = self._expectation, self.check
        if measured.error is not None:
            return self._failure(measured.error)
        if measured.result is not None:
            measured.result.expectation_config = expectation.configuration
            return measured.result
        try:
            if check.run == "type":
                counts = {name: aggregates[sql] for name, sql in check.statistics.items()}
                result = _gx_engine.evaluate_type(check, unconditional_expectation(check), counts)
                result.expectation_config = expectation.configuration
                return result
            with patches.great_expectations_cache(type(expectation), self._cache):
                dependencies = expectation.get_validation_dependencies(
                    runtime_configuration={"result_format": dict(_RESULT_FORMAT)}
                )
                metric = check.metrics(aggregates.__getitem__, columns, bad_rows, examples, measured)
                values = {m.id: metric(name) for name, m in dependencies.metric_configurations.items()}
                return expectation.metrics_validate(
                    values, runtime_configuration={"result_format": dict(_RESULT_FORMAT)}
                )
        except Exception as error:  # an expectation that cannot be evaluated stops the partition
            return self._failure(error)

    def _failure(self, error: Exception) -> Any:
        """Great Expectations' result of an expectation that could not be evaluated."""
        from great_expectations.core.expectation_validation_result import ExpectationValidationResult

        if isinstance(error, PerennialError):
            detail = f"{error.cause}; {error.remedy}"
        elif self._hides_values:
            detail = redacted_text(error)
        else:
            detail = f"{type(error).__name__}: {error}"
        return ExpectationValidationResult(
            success=False,
            expectation_config=self._expectation.configuration,
            exception_info={
                "raised_exception": True,
                "exception_traceback": "",
                "exception_message": detail,
            },
        )


def _tidy(result: Any) -> None:
    """Prepare a result for the page, in place: plain numbers, and distributions without thousands of values."""
    if isinstance(result.result.get("observed_value"), np.generic):
        result.result["observed_value"] = result.result["observed_value"].item()
    details = result.result.get("details")
    if not isinstance(details, dict):
        return
    for part in ("observed_partition", "expected_partition"):
        lists = details.get(part)
        if isinstance(lists, dict):
            details[part] = {k: v[:MAX_DETAILS] if isinstance(v, list) else v for k, v in lists.items()}


def _hidden_observation(check: Check) -> Any:
    """What is shown instead of an observed value, in the form that Great Expectations' page needs."""
    if "quantile_ranges" not in check.kwargs:
        return HIDDEN_VALUE
    quantiles = check.kwargs["quantile_ranges"]["quantiles"]
    return {"quantiles": quantiles, "values": [HIDDEN_VALUE] * len(quantiles)}


def gx_expectation(check: Check, event_limit: datetime | None = None) -> Any:
    """Build the Great Expectations object of a check.

    Args:
        check: the check.
        event_limit: the first event time that is too late for the partition; for a check of event times only.

    Raises:
        SpecError: Great Expectations refuses the arguments.
    """
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    config = {k: v for k, v in check.config.items() if v is not None and k != "rendered_content"}
    if check.limits_event_time and event_limit:
        limit = event_limit.isoformat()
        config = {**config, "kwargs": {**check.kwargs, "max_value": limit, "strict_max": True}}
    elif check.level == "table":
        config["kwargs"] = {k: _as_moment(check, k, v) for k, v in check.kwargs.items()}
    try:
        return ExpectationConfiguration(**config).to_domain_obj()
    except Exception as error:  # its validation errors have no common base class
        raise SpecError(
            f"expectations.json: {check.label}: {error}", "correct the expectation's arguments"
        ) from error


def unconditional_expectation(check: Check) -> Any:
    """Build the Great Expectations object of a check for rows that meet its condition.

    Raises:
        SpecError: Great Expectations refuses the arguments.
    """
    kwargs = {k: v for k, v in check.kwargs.items() if k not in ("mostly", "row_condition")}
    return gx_expectation(replace(check, config={**check.config, "kwargs": kwargs}))


def value_expectations(check: Check) -> list[Any]:
    """Build the Great Expectations objects that single values must meet, one after the other.

    Great Expectations raises an error if a text that has to match a JSON schema is no JSON; here, it is a bad value.

    Raises:
        SpecError: Great Expectations refuses the arguments.
    """
    expectation = unconditional_expectation(check)
    if check.type != "expect_column_values_to_match_json_schema":
        return [expectation]
    config = {"type": "expect_column_values_to_be_json_parseable", "kwargs": {"column": check.columns[0]}}
    return [gx_expectation(replace(check, config=config)), expectation]


def _as_moment(check: Check, argument: str, value: Any) -> Any:
    """A bound of a date or time column as Great Expectations can compare it with `Check.metrics`, which are datetimes.

    It would read a bound without a time of day as a date, and compare one with an offset as it is.
    """
    declared = check.types.get(str(check.kwargs.get("column")))
    if argument not in ("min_value", "max_value") or declared not in ("date", "timestamp"):
        return value
    if not isinstance(value, str):  # a number of values
        return value
    moment = datetime.fromisoformat(value)
    return (moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment).isoformat()


def _explain(check: Check, result: Any) -> str:
    observed = result.result.get("observed_value", result.result.get("details"))
    expected = {k: v for k, v in check.kwargs.items() if k not in ("column", "row_condition")}
    return f"{check.label}: observed {_shorten(observed)}, expected {_shorten(expected)}"


def _shorten(value: Any) -> str:
    text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    return text if len(text) <= 160 else text[:157] + "..."
