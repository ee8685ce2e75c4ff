"""Evaluation of checks by Great Expectations, from metrics that DuckDB has computed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from perennial.core import dates, patches
from perennial.core.errors import SpecError
from perennial.core.sql import HIDDEN_VALUE
from perennial.validation.checks import MAX_EXAMPLES, Check

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
#: Suffixes of table-level expectations whose observed value does not reveal a value of a single row.
_AGGREGATE_ONLY = ("count_to_be_between", "values_to_be_between", "to_exist")
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
    """

    day: str
    rows: int
    quarantined: int = 0
    results: list[Any] = field(default_factory=list)
    bad_rows_by_check: dict[str, int] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    declared: int = 0
    evaluated: int = 0


class ExpectationEvaluator:
    """Evaluates one check on several files, one after another.

    Args:
        check: the check.
        personal: columns of personal data, whose values no result may show.
    """

    def __init__(self, check: Check, personal: list[str]) -> None:
        self.check = check
        self._personal = bool(set(check.columns) & set(personal))
        self._expectation: Any = None
        self._cache: dict[tuple[str, int], Any] = {}

    def evaluate(
        self,
        outcome: ValidationOutcome,
        aggregates: dict[str, Any],
        columns: list[str],
        bad_rows: int,
        examples: list[Any],
    ) -> None:
        """Evaluate the check for one file, and add its result and consequences to the outcome.

        Args:
            outcome: the outcome; changed in place.
            aggregates: results of the check's aggregates, by their SQL.
            columns: the file's columns.
            bad_rows: number of bad rows.
            examples: some of their values.

        Raises:
            SpecError: Great Expectations refuses the check's arguments.
        """
        check = self.check
        outcome.declared += check.declared
        if check.hidden_if_passed and not bad_rows:
            return
        result = self._result(outcome.day, aggregates, columns, bad_rows, examples)
        outcome.results.append(result)
        if result.exception_info.get("raised_exception"):
            cause = str(result.exception_info["exception_message"])
            outcome.stopped.append(f"{check.label} could not be evaluated: {cause[:200]}")
            return
        outcome.evaluated += check.declared
        if self._personal and check.level == "table" and not check.type.endswith(_AGGREGATE_ONLY):
            result.result = {"observed_value": HIDDEN_VALUE}
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
        self, day: str, aggregates: dict[str, Any], columns: list[str], bad_rows: int, examples: list[Any]
    ) -> Any:
        """Great Expectations' result of the check for one file."""
        from great_expectations.core.expectation_validation_result import ExpectationValidationResult

        if self._expectation is None or self.check.max_day_offset:
            self._expectation, self._cache = gx_expectation(self.check, day), {}
        expectation = self._expectation
        with patches.great_expectations_cache(type(expectation), self._cache):
            try:
                dependencies = expectation.get_validation_dependencies(
                    runtime_configuration={"result_format": dict(_RESULT_FORMAT)}
                )
                metric = self.check.metrics(aggregates.__getitem__, columns, bad_rows, examples)
                values = {m.id: metric(name) for name, m in dependencies.metric_configurations.items()}
                return expectation.metrics_validate(
                    values, runtime_configuration={"result_format": dict(_RESULT_FORMAT)}
                )
            except Exception as error:  # an expectation that cannot be evaluated stops the partition
                detail = "" if self._personal else f": {error}"
                return ExpectationValidationResult(
                    success=False,
                    expectation_config=expectation.configuration,
                    exception_info={
                        "raised_exception": True,
                        "exception_traceback": "",
                        "exception_message": f"{type(error).__name__}{detail}",
                    },
                )


def gx_expectation(check: Check, day: str) -> Any:
    """Build the Great Expectations object of a check.

    Args:
        check: the check.
        day: partition date, from which the latest allowed time is computed.

    Raises:
        SpecError: Great Expectations refuses the arguments.
    """
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    config = {k: v for k, v in check.config.items() if v is not None and k != "rendered_content"}
    if check.max_day_offset:
        limit = f"{dates.add_days(day, check.max_day_offset)}T00:00:00"
        config = {**config, "kwargs": {**check.kwargs, "max_value": limit, "strict_max": True}}
    try:
        return ExpectationConfiguration(**config).to_domain_obj()
    except Exception as error:  # its validation errors have no common base class
        raise SpecError(
            f"expectations.json: {check.label}: {error}", "correct the expectation's arguments"
        ) from error


def _explain(check: Check, result: Any) -> str:
    observed = result.result.get("observed_value", result.result.get("details"))
    expected = {k: v for k, v in check.kwargs.items() if k not in ("column", "row_condition")}
    return f"{check.label}: observed {_shorten(observed)}, expected {_shorten(expected)}"


def _shorten(value: Any) -> str:
    text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    return text if len(text) <= 160 else text[:157] + "..."
