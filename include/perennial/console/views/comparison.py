"""Two versions side by side, with their differences; the specs that they were trained with come from MLflow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from perennial.charts.markup import number
from perennial.console import time_limit
from perennial.console.views.parts import Parts
from perennial.console.views.version import Metric, VersionPage
from perennial.modeling import registry, training_records
from perennial.modeling.performance import Estimate, SlicePerformance
from perennial.modeling.registry import ModelVersion
from perennial.spec import spec_changes
from perennial.spec.constraints import metric_in_words

#: Characters of a value of a spec that are shown.
_MAX_VALUE = 300


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    Attributes:
        section: what it belongs to.
        name: what is compared.
        values: of both versions; empty where one has none.
        differs: whether they differ.
        better: number of the version (0 or 1) whose metric is better; None where none is.
    """

    section: str
    name: str
    values: tuple[str, str]
    differs: bool
    better: int | None = None


@dataclass(frozen=True)
class ComparisonPage:
    """The page.

    Attributes:
        model: name of the model.
        versions: the two that are compared.
        choices: all versions, the latest first.
        rows: the comparison.
        spec_changes: keys of the specs whose values differ; None if the specs could not be read.
        problems: parts that cannot be shown, with cause and remedy.
    """

    model: str
    versions: tuple[str, str]
    choices: list[str]
    rows: list[Row]
    spec_changes: list[Row] | None = None
    problems: list[tuple[str, str, str]] = field(default_factory=list)


def compose(first: VersionPage, second: VersionPage) -> ComparisonPage:
    """Compare two versions.

    Args:
        first: of the same model.
        second: the other one.
    """
    parts = Parts()
    changes = parts.read("the comparison of the specs", lambda: _spec_changes(first, second), None)
    choices = sorted({first.version, second.version, *first.others}, key=int, reverse=True)
    return ComparisonPage(
        first.model,
        (first.version, second.version),
        choices,
        [
            *_decision(first, second),
            *_metrics(first, second),
            *_slices(first, second),
            *_comparisons(first, second),
            *_lineage(first, second),
        ],
        changes,
        [*first.problems, *(p for p in second.problems if p not in first.problems), *parts.problems],
    )


def _row(section: str, name: str, a: str, b: str) -> Row:
    return Row(section, name, (a, b), a != b)


def _decision(first: VersionPage, second: VersionPage) -> Iterator[Row]:
    def scored(page: VersionPage) -> str:
        return f"{sum(count for _, count in page.scored):,} partitions"

    yield _row("Decision", "Trained as of", first.as_of, second.as_of)
    yield _row("Decision", "Gate", first.decision, second.decision)
    yield _row("Decision", "Champion", _terms(first), _terms(second))
    yield _row("Decision", "Scored", scored(first), scored(second))


def _lineage(first: VersionPage, second: VersionPage) -> Iterator[Row]:
    facts = [{fact.name: fact.value for fact in page.lineage} for page in (first, second)]
    for name in dict.fromkeys([*facts[0], *facts[1]]):
        yield _row("Lineage", name, facts[0].get(name, ""), facts[1].get(name, ""))
    for name in sorted({*first.files, *second.files}):
        yield _row("Files (SHA-256)", name, first.files.get(name, "")[:16], second.files.get(name, "")[:16])


def _terms(page: VersionPage) -> str:
    if not page.terms:
        return "never"
    return "; ".join(f"{t.since[:10]} to {t.until[:10] or 'now'}" for t in page.terms)


def _metrics(first: VersionPage, second: VersionPage) -> Iterator[Row]:
    """The metrics; those of different held-out dates are shown, and none is called better."""
    section = "Metrics on the held-out rows"
    yield _row(section, "Rows", first.coverage, second.coverage)
    held_out = [next((f.value for f in p.lineage if f.name == "Evaluated on"), "") for p in (first, second)]
    metrics = [{m.name: m for m in page.metrics} for page in (first, second)]
    for name in sorted({*metrics[0], *metrics[1]}):
        a, b = metrics[0].get(name), metrics[1].get(name)
        values = (_with_interval(a), _with_interval(b))
        better = None
        if a and b and a.value != b.value and held_out[0] == held_out[1]:
            better = int((b.value > a.value) == (a.better == "higher"))
        title = (a or b or metrics[0][name]).title
        yield Row(section, title, values, values[0] != values[1], better)


def _with_interval(metric: Metric | None) -> str:
    """A metric for people; empty if there is none."""
    if metric is None:
        return ""
    if metric.low is None or metric.high is None:
        return number(metric.value)
    return str(Estimate(metric.value, metric.low, metric.high))


def _slices(first: VersionPage, second: VersionPage) -> Iterator[Row]:
    """The metrics of the slices of either version."""
    slices = [
        {(s.column, s.value): s for s in page.held_out.slices} if page.held_out else {}
        for page in (first, second)
    ]
    for column, value in dict.fromkeys([*slices[0], *slices[1]]):
        a, b = (_of_slice(of_page.get((column, value))) for of_page in slices)
        yield _row(f"Slices of the held-out rows by {column}", value, a, b)


def _of_slice(slice_: SlicePerformance | None) -> str:
    """The metrics of a slice and its number of rows; empty if the version has no such slice."""
    if slice_ is None:
        return ""
    metrics = "; ".join(f"{metric_in_words(name)} {metric}" for name, metric in slice_.metrics.items())
    return f"{metrics}; {slice_.rows:,} rows" if metrics else slice_.too_few


def _comparisons(first: VersionPage, second: VersionPage) -> Iterator[Row]:
    """What the gate measured of each, against whichever it was compared with."""

    def texts(page: VersionPage) -> dict[str, str]:
        return {
            c.other.partition(",")[0]: f"{c.improvement:+.2%} [{c.low:+.2%}, {c.high:+.2%}], {c.rows:,} rows"
            + (f" ({c.other.partition(', ')[2]})" if ", " in c.other else "")
            for c in page.comparisons
        }

    a, b = texts(first), texts(second)
    for name in dict.fromkeys([*a, *b]):
        yield _row("Improvement over, with confidence interval", name, a.get(name, ""), b.get(name, ""))


def _spec_changes(first: VersionPage, second: VersionPage) -> list[Row]:
    """The keys of the specs, SQL and suite included, whose values differ; MLflow is asked only if there are any."""
    digests = [next((f.value for f in p.lineage if f.name == "Spec"), "") for p in (first, second)]
    if digests[0] and digests[0] == digests[1]:
        return []
    what = "MLflow, which has the specs that versions were trained with,"
    specs = time_limit.within(
        time_limit.MLFLOW_SECONDS, what, lambda: [_spec(p.model, p.version) for p in (first, second)]
    )
    return [
        Row("Spec", key, (a[:_MAX_VALUE], b[:_MAX_VALUE]), differs=True)
        for key, (a, b) in spec_changes.changed_keys(*specs).items()
    ]


def _spec(model: str, number_: str) -> dict[str, Any]:
    """The bundle of a version's spec, as it was stored and checked against the ledger's digest."""
    record = next(r for r in reversed(training_records.all_records(model)) if r.version == number_)
    version_ = ModelVersion(model, record.version, record.run_id, record.model_id, record.tags)
    return dict(registry.load_json_artifact(version_, "spec.json"))
