"""Compose the Great Expectations suite of a new model from its sample.

A check that normal data of next week fails is worse than none. So what is learned from the sample is a warning, except
the classes of the label and a number of rows far below the sample's; and a check that later partitions of the sample
itself would have failed, had it been learned from the earlier ones, becomes wider or is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from perennial.cli.new import partition_statistics
from perennial.cli.new._learned_checks import (
    ClassSet,
    LearnedCheck,
    NotNull,
    Range,
    RowCount,
    Rule,
    TextLength,
    ValueSet,
    expect,
)
from perennial.cli.new.partition_statistics import Array, PartitionStatistics
from perennial.cli.new.samples.sample_reader import MAX_VALUES, Sample
from perennial.cli.new.templates import FREE_TEXT_LENGTH, ModelDraft, label_is_column
from perennial.spec.sections import DataSpec

__all__ = ["Holdout", "Suite", "compose"]

#: A text column is expected to have only the sample's values if there are few of them.
MAX_SET_VALUES = 25
#: From fewer partitions nothing is learned: they do not show what varies, nor what grows.
MIN_PARTITIONS = 5
#: Partitions that a check is learned from at least when it is tried.
MIN_LEARNED = 3
#: Where the sample is divided into earlier and later partitions, as shares of all.
CUTS = (0.5, 0.6, 0.7, 0.8, 0.9)
#: Share of the later partitions that a suite may stop.
MAX_STOPPED = 0.01


@dataclass(frozen=True)
class Holdout:
    """How often suites that were learned from earlier partitions of the sample objected to later ones.

    Attributes:
        partitions: later partitions, counted once for each division of the sample.
        stopped: those that would have been stopped.
        warned: those with a warning.
    """

    partitions: int
    stopped: int
    warned: int

    @property
    def text(self) -> str:
        """The figures, for a person."""
        if not self.partitions:
            return "too few partitions to try the checks on"
        return (
            f"learned from earlier partitions of the sample, they would have stopped {self.stopped} of "
            f"{self.partitions} later ones ({self.stopped / self.partitions:.1%}), and warned of "
            f"{self.warned} ({self.warned / self.partitions:.1%})"
        )


@dataclass(frozen=True)
class Suite:
    """A suite, and what is known about it.

    Attributes:
        text: ``expectations.json``, one expectation per line.
        summary: a sentence about its checks and the simulated hold-out, for the README.
        remarks: what the user should know about it.
    """

    text: str
    summary: str
    remarks: list[str]


def compose(sample: Sample, draft: ModelDraft) -> Suite:
    """Compose the suite of a new model.

    Args:
        sample: the sample, divided into partitions.
        draft: the decisions about the model.
    """
    key = [k for k in draft.key if k != draft.row_number]
    required = list(dict.fromkeys([*key, *([draft.event_time] if draft.event_time else [])]))
    declared = {c for c in sample.columns if label_is_column(sample, draft) or c != draft.label}
    entries = list(_structural(sample, key, required, declared))
    learned_from = declared - {*required, *draft.personal}
    partitions = partition_statistics.measure(sample, draft, {*sample.columns} - learned_from, MAX_VALUES)
    limit = float(DataSpec.model_fields["quarantine_limit"].default)
    checks, holdout = learn(_rules(sample, draft, partitions), partitions, limit)
    content = [*entries, *(check.entry for check in checks)]
    lines = ",\n".join(f"    {json.dumps(e, ensure_ascii=False, allow_nan=False)}" for e in content)
    name = json.dumps(draft.name)
    text = f'{{\n  "name": {name},\n  "expectations": [\n{lines}\n  ],\n  "meta": {{}}\n}}\n'
    return Suite(text, *_described(partitions, checks, holdout))


def _structural(
    sample: Sample, key: list[str], required: list[str], declared: set[str]
) -> Iterator[dict[str, Any]]:
    """The checks that any partition must pass: columns, and a key that identifies a row."""
    columns = [c for c in sample.columns if c in declared]
    yield expect("expect_table_columns_to_match_set", column_set=columns, exact_match=False)
    for column in required:
        if not sample.columns[column].nulls:
            yield expect("expect_column_values_to_not_be_null", column=column)
    if len(key) == 1:
        yield expect("expect_column_values_to_be_unique", column=key[0])
    elif key:
        yield expect("expect_compound_columns_to_be_unique", column_list=key)


def _rules(sample: Sample, draft: ModelDraft, partitions: PartitionStatistics) -> list[Rule]:
    """The checks that are learned, in the order of the columns."""
    rules: list[Rule] = [RowCount(critical=True), RowCount(critical=False)]
    for name, statistics in partitions.columns.items():
        column = sample.columns[name]
        rules.append(NotNull(name))
        if name == draft.label and draft.task in ("binary", "multiclass"):
            if statistics.values:
                zero_one = draft.task == "binary" and column.kind == "integer"
                rules.append(ClassSet(name, (0, 1) if zero_one else ()))
        elif column.kind in ("integer", "number"):
            rules.append(Range(name))
        elif column.kind == "string":
            if statistics.values and len(statistics.values) <= MAX_SET_VALUES:
                rules.append(ValueSet(name))
            elif column.length <= FREE_TEXT_LENGTH:
                rules.append(TextLength(name))
    return rules


def learn(
    rules: list[Rule], partitions: PartitionStatistics, quarantine_limit: float
) -> tuple[list[LearnedCheck], Holdout]:
    """Learn checks, and try the same on earlier and later partitions.

    Args:
        rules: how they are learned.
        partitions: all partitions.
        quarantine_limit: share of quarantined rows above which a partition is stopped.

    Returns:
        The checks, and what they would have said of later partitions. Where they would have stopped more than
        `MAX_STOPPED`, all of them are warnings.
    """
    checks, holdout = _learn(rules, partitions), _try(rules, partitions, quarantine_limit)
    if holdout.stopped > MAX_STOPPED * holdout.partitions and any(check.critical for check in checks):
        checks = [_as_warning(check) for check in checks]
        holdout = _try(rules, partitions, quarantine_limit, warnings_only=True)
    return checks, holdout


def _cuts(partitions: PartitionStatistics) -> list[int]:
    """Numbers of earlier partitions to learn from."""
    n = len(partitions)
    return sorted({max(MIN_LEARNED, round(n * share)) for share in CUTS} & {*range(MIN_LEARNED, n)})


def _learn(rules: list[Rule], partitions: PartitionStatistics) -> list[LearnedCheck]:
    """Learn each check at the first level at which no later partition fails what the earlier ones taught."""
    if len(partitions) < MIN_PARTITIONS:
        return []
    splits = [(partitions.select(slice(n)), partitions.select(slice(n, None))) for n in _cuts(partitions)]
    checks = []
    for rule in rules:
        for level in range(rule.levels):
            check = rule.learn(partitions, level)
            if check is None:
                break
            tried = [(rule.learn(earlier, level), later) for earlier, later in splits]
            if not any(c is not None and c.fails(later).any() for c, later in tried):
                checks.append(check)
                break
    return checks


def _try(
    rules: list[Rule],
    partitions: PartitionStatistics,
    quarantine_limit: float,
    *,
    warnings_only: bool = False,
) -> Holdout:
    """Learn from earlier partitions only, the choice of levels included, and count what is said of the later ones."""
    later_ones = stopped = warned = 0
    for n in _cuts(partitions) if len(partitions) >= MIN_PARTITIONS else []:
        checks, later = _learn(rules, partitions.select(slice(n))), partitions.select(slice(n, None))
        if warnings_only:
            checks = [_as_warning(check) for check in checks]
        later_ones += len(later)
        stopped += int(stops(checks, later, quarantine_limit).sum())
        failures = [check.fails(later) for check in checks if not check.critical]
        warned += int(np.any(failures, axis=0).sum()) if failures else 0
    return Holdout(later_ones, stopped, warned)


def stops(checks: list[LearnedCheck], partitions: PartitionStatistics, quarantine_limit: float) -> Array:
    """Whether each partition would be stopped by the checks, or by what they and the built-in ones quarantine."""
    stopped, quarantined = np.zeros(len(partitions), bool), partitions.quarantined
    for check in checks:
        if check.critical and not check.column:
            stopped = stopped | check.fails(partitions)
        elif check.critical:
            quarantined = quarantined + check.bad_rows(partitions)
    return stopped | (quarantined > quarantine_limit * partitions.rows)


def _as_warning(check: LearnedCheck) -> LearnedCheck:
    return LearnedCheck(
        check.entry | {"severity": "warning"}, check.column, check.low, check.high, check.values, check.mostly
    )


def _described(
    partitions: PartitionStatistics, checks: list[LearnedCheck], holdout: Holdout
) -> tuple[str, list[str]]:
    """A sentence for the README, and remarks."""
    if len(partitions) < MIN_PARTITIONS:
        return (
            f"The sample has {len(partitions)} partition{'s' * (len(partitions) > 1)}: `expectations.json` checks the "
            "columns and the key only. Add ranges when more has landed.",
            ["checks: of columns and key only, because the sample has fewer than five partitions"],
        )
    critical = sum(check.critical for check in checks)
    summary = (
        f"`expectations.json` has {len(checks)} checks that were learned from the sample: {critical} can stop a "
        f"partition or put rows into quarantine, the others are warnings. A simulated hold-out: {holdout.text}."
    )
    remarks = [f"checks: {holdout.text}"]
    if holdout.stopped > MAX_STOPPED * holdout.partitions:
        remarks.append(
            "checks: more than 1% of the later partitions would be stopped, by rows without a key or time, with a key "
            "twice or later than their partition; correct the feed, or raise data.quarantine_limit"
        )
    if partitions.omitted:
        remarks.append(
            f"checks: nothing is learned of {partitions.omitted} columns: a suite would be too long"
        )
    return summary, remarks
