"""Great Expectations as the judge: it says which metrics an expectation asks for, and what they mean for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from perennial.core import dates
from perennial.core.errors import SpecError
from perennial.validation.checks import EXAMPLES, Check
from perennial.validation.suite import Expectation, SuiteProblem

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
#: Table-level expectations whose observed value says nothing of a single row.
_COUNTS = ("count_to_be_between", "values_to_be_between", "to_exist")
HIDDEN = "(personal data)"


@dataclass
class ValidationOutcome:
    """What validation found in one partition.

    Attributes:
        day: partition date. rows: rows in the file. quarantined: rows to put aside.
        results: Great Expectations' results, one a check, in order.
        broken: bad rows by check label, critical row-level checks alone.
        stopped: why nothing of the partition may be published; empty: it may.
        declared: expectations in the suite. evaluated: those that were evaluated.
    """

    day: str
    rows: int
    quarantined: int = 0
    results: list[Any] = field(default_factory=list)
    broken: dict[str, int] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    declared: int = 0
    evaluated: int = 0


class ExpectationEvaluator:
    """Judges one check, for one file after the other.

    Raises:
        SpecError: Great Expectations refuses the arguments.
    """

    def __init__(self, check: Check, personal: list[str]) -> None:
        self.check = check
        self._hidden = bool(set(check.columns) & set(personal))
        self._expectation: Any = None
        self._memory: dict[tuple[str, int], Any] = {}

    def decide(
        self,
        outcome: ValidationOutcome,
        profile: dict[str, Any],
        columns: list[str],
        bad: int,
        examples: list[Any],
    ) -> None:
        """Add the result to the outcome of a partition, and what follows from it.

        Args:
            profile: results of the check's aggregates, by their SQL.
            columns: the file's columns.
            bad: bad rows. examples: some of their values.
        """
        check = self.check
        outcome.declared += check.declared
        if check.quiet and not bad:
            return
        result = self._result(outcome, profile, columns, bad, examples)
        outcome.results.append(result)
        if result.exception_info.get("raised_exception"):
            cause = str(result.exception_info["exception_message"])
            outcome.stopped.append(f"{check.label} could not be evaluated: {cause[:200]}")
            return
        outcome.evaluated += check.declared
        if self._hidden and check.level == "table" and not check.type.endswith(_COUNTS):
            result.result = {"observed_value": HIDDEN}
        if not check.critical:
            return
        if check.level == "table":
            if not result.success:
                outcome.stopped.append(_explain(check, result))
            return
        if bad:
            outcome.broken[check.label] = outcome.broken.get(check.label, 0) + bad
        if check.mostly is not None and not result.success:
            share = 1 - bad / max(1, profile[check.considered_sql])
            outcome.stopped.append(
                f"{check.label}: {share:.2%} of the rows are good, mostly asks for {check.mostly:.2%}"
            )

    def _result(
        self,
        outcome: ValidationOutcome,
        profile: dict[str, Any],
        columns: list[str],
        bad: int,
        examples: list[Any],
    ) -> Any:
        from great_expectations.core.expectation_validation_result import ExpectationValidationResult

        if self._expectation is None or self.check.until_day:
            self._expectation, self._memory = expectation(self.check, outcome.day), {}
        judge = self._expectation
        asked = {"result_format": {"result_format": "BASIC", "partial_unexpected_count": EXAMPLES}}
        with _patched_gx_cache(type(judge), self._memory):
            try:
                needed = judge.get_validation_dependencies(runtime_configuration=dict(asked))
                answer = self.check.metrics(profile.__getitem__, columns, bad, examples)
                values = {m.id: answer(name) for name, m in needed.metric_configurations.items()}
                return judge.metrics_validate(values, runtime_configuration=dict(asked))
            except (
                Exception
            ) as error:  # whatever it is: the expectation was not evaluated, which stops the partition
                told = "" if self._hidden else f": {error}"
                info = {"raised_exception": True, "exception_traceback": "",
                        "exception_message": f"{type(error).__name__}{told}"}  # fmt: skip
                return ExpectationValidationResult(
                    success=False, expectation_config=judge.configuration, exception_info=info
                )


def refused(suite: list[Expectation]) -> list[SuiteProblem]:
    """What Great Expectations itself refuses of a suite that `parse_suite` could read (imports it: seconds)."""
    problems = []
    for entry in suite:
        check = Check(
            entry.label, entry.type, {"meta": {}, **entry.config, "kwargs": entry.kwargs}, entry.level
        )
        try:
            expectation(check, "2000-01-01")
        except SpecError as error:
            problems.append(SuiteProblem(entry.line, error.cause.removeprefix("expectations.json: ")))
    return problems


def expectation(check: Check, day: str) -> Any:
    """Great Expectations' own object for a check.

    Raises:
        SpecError: it refuses the arguments.
    """
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    config = {k: v for k, v in check.config.items() if v is not None and k != "rendered_content"}
    if check.until_day:
        limit = f"{dates.add_days(day, check.until_day)}T00:00:00"
        config = {**config, "kwargs": {**check.kwargs, "max_value": limit, "strict_max": True}}
    try:
        return ExpectationConfiguration(**config).to_domain_obj()
    except Exception as error:  # its validation errors have no common base
        raise SpecError(
            f"expectations.json: {check.label}: {error}", "mend the expectation's arguments"
        ) from error


@contextmanager
def _patched_gx_cache(kind: type, memory: dict[tuple[str, int], Any]) -> Iterator[None]:
    """An expectation's configuration, and the metrics that it needs, are worked out once and kept in ``memory``.

    Great Expectations (1.24) works the one out anew at each of the eighty times that it asks for it to judge one
    expectation, the other twice; that is nine tenths of the time, and nothing changes them meanwhile.

    Args:
        kind: the class of the one expectation that is judged meanwhile.
    """
    from great_expectations.expectations.expectation import Expectation

    configured, needed = Expectation.configuration, kind.get_validation_dependencies  # type: ignore[attr-defined]
    own = "get_validation_dependencies" in vars(kind)

    def configuration(self: Any) -> Any:
        return kept("configuration", self, lambda: configured.fget(self))

    def dependencies(self: Any, *_: Any, **how: Any) -> Any:
        return kept("dependencies", self, lambda: needed(self, **how))

    def kept(what: str, of: Any, make: Callable[[], Any]) -> Any:
        if (what, id(of)) not in memory:
            memory[what, id(of)] = (of, make())  # with the object itself, so that its id stays its own
        return memory[what, id(of)][1]

    Expectation.configuration = property(configuration)
    kind.get_validation_dependencies = dependencies  # type: ignore[attr-defined]
    try:
        yield
    finally:
        Expectation.configuration = configured
        if own:
            kind.get_validation_dependencies = needed  # type: ignore[attr-defined]
        else:
            del kind.get_validation_dependencies  # type: ignore[attr-defined]


def _explain(check: Check, result: Any) -> str:
    observed = result.result.get("observed_value", result.result.get("details"))
    asked = {k: v for k, v in check.kwargs.items() if k not in ("column", "row_condition")}
    return f"{check.label}: observed {_brief(observed)}, expected {_brief(asked)}"


def _brief(value: Any) -> str:
    text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    return text if len(text) <= 160 else text[:157] + "..."
