"""What training stored about a version's performance on the held-out rows: intervals, slices and fairness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from perennial.charts.markup import Markup, element, join
from perennial.console import overview, time_limit
from perennial.console.views.parts import Parts
from perennial.modeling import evaluation_charts, performance, registry
from perennial.modeling.performance import Performance
from perennial.modeling.registry import ModelVersion
from perennial.modeling.training_records import TrainingRecord
from perennial.training.gate import fairness, fairness_chart
from perennial.training.gate.fairness import Fairness


def read(parts: Parts, model: str, recorded: TrainingRecord) -> Performance | None:
    """The performance of a version, checked against the ledger's digest; None if it has none, or it cannot be read.

    Values of a column that is personal data by now are left out, also if it was not when the version was trained.

    Args:
        parts: collects what cannot be read.
        model: name of the model.
        recorded: training of the version.
    """
    if performance.ARTIFACT not in recorded.digests:
        return None
    words = "intervals and slices"
    stored = parts.read(
        words, lambda: performance.parse(_load(model, recorded, performance.ARTIFACT, words)), None
    )
    if stored is None or not stored.slices:
        return stored
    without = replace(stored, slices=[], other_rows={})
    return parts.read(
        "slices", lambda: stored.without_columns(overview.load_spec(model).personal_names), without
    )


def read_fairness(parts: Parts, model: str, recorded: TrainingRecord) -> Fairness | None:
    """The fairness of a version, likewise; None if its gate had none.

    Groups of a column that is personal data by now are left out, unless the spec named them when it was trained.
    """
    if fairness.ARTIFACT not in recorded.digests:
        return None

    def load() -> Fairness:
        stored = fairness.parse(_load(model, recorded, fairness.ARTIFACT, "the fairness"))
        return stored.without_columns(overview.load_spec(model).personal_names)

    return parts.read("fairness", load, None)


def fairness_figures(stored: Fairness | None) -> Markup:
    """The verdicts on the fairness of a version, its charts, and what they rest on; empty if it has none."""
    if stored is None or not stored.verdicts:
        return Markup("")
    verdicts = element(
        "div",
        fairness_chart.verdict_table(stored, "grid"),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label="Fairness",
    )
    charts = element("div", *fairness_chart.figures(stored), class_="charts of-slices")
    return join([verdicts, charts, fairness_chart.describe(stored)])


def _load(model: str, recorded: TrainingRecord, artifact: str, words: str) -> Any:
    """Load a JSON file of a version, for so long as a page may take."""
    version = ModelVersion(model, recorded.version, recorded.run_id, recorded.model_id, recorded.tags)
    return time_limit.within(
        time_limit.MLFLOW_SECONDS,
        f"MLflow, which has {words} of versions,",
        lambda: registry.load_json_artifact(version, artifact),
    )


def slice_figures(model: str, stored: Performance | None) -> Mapping[str, Markup]:
    """The charts of the slices, by column.

    Args:
        model: name of the model.
        stored: the performance of a version; None if it has none.
    """
    if stored is None or not stored.slices:
        return {}
    charts = evaluation_charts.slice_charts(stored, overview.load_spec(model).metric)
    return {column: join(chart.figure() for chart in of_column) for column, of_column in charts.items()}
