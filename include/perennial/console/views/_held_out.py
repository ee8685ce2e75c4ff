"""What training stored about a version's performance on the held-out rows: intervals, and slices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from perennial.charts.markup import Markup, join
from perennial.console import overview, time_limit
from perennial.console.views.parts import Parts
from perennial.modeling import evaluation_charts, performance, registry
from perennial.modeling.performance import Performance
from perennial.modeling.registry import ModelVersion
from perennial.modeling.training_records import TrainingRecord


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
    version = ModelVersion(model, recorded.version, recorded.run_id, recorded.model_id, recorded.tags)
    stored = parts.read(
        "intervals and slices",
        lambda: time_limit.within(
            time_limit.MLFLOW_SECONDS,
            "MLflow, which has the intervals and slices of versions,",
            lambda: performance.parse(registry.load_json_artifact(version, performance.ARTIFACT)),
        ),
        None,
    )
    if stored is None or not stored.slices:
        return stored
    without = replace(stored, slices=[], other_rows={})
    return parts.read("slices", lambda: _without_personal(model, stored), without)


def _without_personal(model: str, stored: Performance) -> Performance:
    personal = overview.load_spec(model).personal_names
    return replace(
        stored,
        slices=[s for s in stored.slices if s.column not in personal],
        other_rows={c: n for c, n in stored.other_rows.items() if c not in personal},
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
