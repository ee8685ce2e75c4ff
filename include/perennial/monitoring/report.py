"""The monitoring report: tables of verdict, signals and columns, and Evidently's plots.

Evidently plots a sample of rows; the scores that it shows are the PSI of `histograms`, computed from all rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from perennial.charts import page
from perennial.charts.markup import Markup
from perennial.core import html, patches
from perennial.modeling.evaluation_charts import Chart
from perennial.monitoring.pictures import signal_charts
from perennial.monitoring.results import WindowRecord
from perennial.spec.alerts import signal_title
from perennial.spec.constraints import direction
from perennial.storage import pages

if TYPE_CHECKING:
    import pandas as pd

    from perennial.monitoring.drift_verdict import ColumnDrift
    from perennial.monitoring.results import MonitoringResult
    from perennial.monitoring.signals import SignalResult

Sample = Mapping[str, "pa.ChunkedArray[Any]"]

METHOD = "perennial_psi"
#: Most categories that are plotted; the others are combined.
MAX_CATEGORIES = 20
#: Characters of a name or category that are shown.
MAX_TEXT_LENGTH = 60
#: Most columns that are plotted, the most important first: Evidently needs about 60 ms and 10 kB for each.
MAX_COLUMNS = 100
#: Score of each column, and whether it drifted, for the statistical test that Evidently calls.
_scores: ContextVar[Mapping[str, tuple[float, bool]]] = ContextVar("_scores")


@dataclass(frozen=True)
class DriftReport:
    """Evidently's drift report.

    Attributes:
        page: HTML; empty if nothing could be plotted.
        results: Evidently's results, as JSON.
        omitted_columns: columns that are not plotted, with the reason.
    """

    page: str = ""
    results: dict[str, Any] = field(default_factory=dict)
    omitted_columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pictures:
    """What the charts at the top of a report show.

    Attributes:
        history: earlier windows, in order.
        drift_limit: drifted share of the importance from which a window is suspicious.
        charts: charts of the window's predictions compared with labels, by name.
    """

    history: Sequence[WindowRecord] = ()
    drift_limit: float = 1.0
    charts: Mapping[str, Chart] = field(default_factory=dict)


def evidently_drift_report(
    columns: Sequence[ColumnDrift],
    reference: Sample,
    current: Sample,
    categorical: Sequence[str],
    drift_share: float,
) -> DriftReport:
    """Plot columns with Evidently, from samples of the reference and the window.

    Columns that cannot be plotted, or on which Evidently fails, are omitted.

    Args:
        columns: the compared columns, the most important first.
        reference: sample of the reference, values by column.
        current: sample of the window, values by column; a column that only one of them has is omitted.
        categorical: names of the categorical columns.
        drift_share: share of drifted columns above which Evidently calls the dataset drifted.
    """
    drawn, reason = pages.attempt(
        "Evidently's drift report",
        lambda: _drift_report(columns, reference, current, categorical, drift_share),
    )
    return drawn or DriftReport(
        omitted_columns={c.column: f"no plot could be drawn: {reason}" for c in columns}
    )


def _drift_report(
    columns: Sequence[ColumnDrift],
    reference: Sample,
    current: Sample,
    categorical: Sequence[str],
    drift_share: float,
) -> DriftReport:
    """As `evidently_drift_report`, but raises what pandas raises on values that cannot be converted."""
    by_name = {c.column: c for c in columns}
    omitted: dict[str, str] = {}
    frames: dict[str, tuple[pd.Series, pd.Series]] = {}
    for name in by_name:
        if len(frames) == MAX_COLUMNS:
            omitted[name] = f"at most {MAX_COLUMNS} columns are plotted"
        elif name not in reference or name not in current:
            omitted[name] = "there is no sample of both the reference and the window"
        elif (pair := _series(reference[name], current[name], name in categorical)) is None:
            omitted[name] = "constant in both the reference and the window, or empty in one of them"
        else:
            frames[name] = pair
    if not frames:
        return DriftReport(omitted_columns=omitted)
    shown = _shown_names(frames)
    try:
        page, results = _run(frames, shown, by_name, categorical, drift_share)
        return DriftReport(page, results, omitted)
    except Exception:  # Evidently raises whatever pandas and numpy raise
        return _plot_without_failing_columns(frames, shown, by_name, categorical, drift_share, omitted)


def _plot_without_failing_columns(
    frames: Mapping[str, tuple[pd.Series, pd.Series]],
    shown: Mapping[str, str],
    by_name: Mapping[str, ColumnDrift],
    categorical: Sequence[str],
    drift_share: float,
    omitted: Mapping[str, str],
) -> DriftReport:
    """Try each column separately, and draw those on which Evidently does not fail."""
    omitted, plottable = dict(omitted), dict(frames)
    for name, pair in frames.items():
        try:
            _run({name: pair}, shown, by_name, categorical, drift_share)
        except Exception as error:
            omitted[name] = f"Evidently failed on it ({type(error).__name__})"
            del plottable[name]
    if not plottable:
        return DriftReport(omitted_columns=omitted)
    try:
        page, results = _run(plottable, shown, by_name, categorical, drift_share)
    except Exception as error:
        failed = dict.fromkeys(plottable, f"Evidently failed ({type(error).__name__})")
        return DriftReport(omitted_columns=omitted | failed)
    return DriftReport(page, results, omitted)


def _shown_names(columns: Mapping[str, Any]) -> dict[str, str]:
    """A unique, printable name for each column."""
    names: dict[str, str] = {}
    for column in columns:
        name = html.for_evidently(column, MAX_TEXT_LENGTH)
        while name in names.values():
            name += "′"
        names[column] = name
    return names


def _series(
    reference: pa.ChunkedArray[Any], current: pa.ChunkedArray[Any], categorical: bool
) -> tuple[pd.Series, pd.Series] | None:
    """Convert both samples of a column for Evidently; None if it cannot be plotted."""
    import pandas as pd

    sides = [values.to_pandas() for values in (reference, current)]
    if categorical:
        top = pd.concat(sides).dropna().astype(str).value_counts().index[:MAX_CATEGORIES]
        sides = [
            s.where(s.isna() | s.astype(str).isin(top), "(others)").map(
                lambda text: html.for_evidently(text, MAX_TEXT_LENGTH), na_action="ignore"
            )
            for s in sides
        ]
    else:
        sides = [
            pd.to_numeric(s, errors="coerce").astype("float64").replace([np.inf, -np.inf], np.nan)
            for s in sides
        ]
    if any(s.notna().sum() == 0 for s in sides) or pd.concat(sides).nunique() < 2:
        return None
    return sides[0].reset_index(drop=True), sides[1].reset_index(drop=True)


def _score(reference: pd.Series, current: pd.Series, kind: object, threshold: float) -> tuple[float, bool]:
    """A test with Evidently's signature that returns the known score, and whether the column drifted."""
    return _scores.get()[str(current.name)]


def _register() -> None:
    """Register `_score` as a test for Evidently's presets."""
    from evidently.legacy.calculations.stattests import registry
    from evidently.legacy.core import ColumnType

    test = registry.StatTest(
        name=METHOD,
        display_name="PSI on the bins of the training rows, all rows",
        allowed_feature_types=[ColumnType.Numerical, ColumnType.Categorical],
    )
    registry.register_stattest(test, _score)


def _run(
    frames: Mapping[str, tuple[pd.Series, pd.Series]],
    shown: Mapping[str, str],
    by_name: Mapping[str, ColumnDrift],
    categorical: Sequence[str],
    drift_share: float,
) -> tuple[str, dict[str, Any]]:
    """Run Evidently; returns the page and the results."""
    os.environ.setdefault("DO_NOT_TRACK", "true")
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    _register()
    texts = [shown[c] for c in frames if c in categorical]
    numbers = [shown[c] for c in frames if c not in categorical]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=texts)
    sides = [
        Dataset.from_pandas(pd.DataFrame({shown[c]: pair[i] for c, pair in frames.items()}), definition)
        for i in (0, 1)
    ]
    thresholds = {shown[c]: by_name[c].threshold for c in frames}
    token = _scores.set({shown[c]: (by_name[c].psi or 0.0, by_name[c].status == "drifted") for c in frames})
    try:
        report = Report(
            [DataDriftPreset(method=METHOD, per_column_threshold=thresholds, drift_share=drift_share)]
        )
        with patches.evidently_drift_table_only():
            snapshot = report.run(sides[1], sides[0])
        page = html.placeholders_to_script(snapshot.get_html_str(as_iframe=False))
        return page, html.restore(json.loads(snapshot.json()))
    finally:
        _scores.reset(token)


def render_page(
    title: str,
    result: MonitoringResult,
    columns: Sequence[ColumnDrift],
    drift_report: DriftReport,
    trial_summary: str = "",
    pictures: Pictures = Pictures(),
) -> str:
    """Render the report as one HTML document: pictures, then tables, then Evidently's plots.

    Args:
        title: heading of the page.
        result: result of the monitor step.
        columns: the compared columns.
        drift_report: Evidently's report.
        trial_summary: comparison of the challenger on trial with the champion, in words.
        pictures: what the charts show.
    """
    drawn, _ = pages.attempt(f"the charts of {title}", lambda: _charts(result, pictures))
    content = _content(title, result, columns, drift_report.omitted_columns, trial_summary, drawn or "")
    if "<body>" not in drift_report.page:
        return page.document(title, Markup(content))
    return page.embed(drift_report.page, title, content)


def _charts(result: MonitoringResult, pictures: Pictures) -> str:
    """The charts: metric and drift, the window's predictions, then every signal, the worst first."""
    overview = signal_charts.overview_charts(pictures.history, result, pictures.drift_limit)
    followed = signal_charts.signal_charts(pictures.history, result)
    window = [chart.figure() for chart in pictures.charts.values()]
    signals = [chart.chart.figure(420, 150) for chart in followed]
    return page.charts([*(chart.figure() for chart in overview), *window]) + (
        page.section("Signals over time", page.charts(signals)) if signals else ""
    )


def _content(
    title: str,
    result: MonitoringResult,
    columns: Sequence[ColumnDrift],
    omitted: Mapping[str, str],
    trial_summary: str,
    charts: str,
) -> str:
    parts = [
        f"<h1>{html.escape(title)} {page.tag(result['verdict'])}</h1><p>{html.escape(result['reason'])}</p>",
        f'<p class="soft">{html.escape(_window(result))}</p>' if result["model_version"] else "",
        charts,
        _signals_table(result["signals"]),
        _columns_table(columns),
        _performance_table(result),
    ]
    if trial := result["trial"]:
        text = f"Version {trial['version']} compared with the champion: {trial_summary}"
        parts.append(f"<h2>Challenger on trial {page.tag(trial['state'])}</h2><p>{html.escape(text)}</p>")
    parts.append(pages.list_of_omissions("Columns without a plot", omitted, MAX_TEXT_LENGTH))
    return "".join(parts)


def _window(result: MonitoringResult) -> str:
    """Describe the window, the reference, and the evaluated share of the importance."""
    return (
        f"Partitions {result['start']} to {result['as_of']}, compared with the reference of the champion, version "
        f"{result['model_version']}. Of the feature importance {_share(result['evaluated_share'])} could be "
        f"evaluated, and {_share(result['drift_share'])} of that drifted."
    )


def _performance_table(result: MonitoringResult) -> str:
    performance = result["performance"]
    heading = (
        f"<h2>Performance {page.tag(performance['verdict'])}</h2><p>{html.escape(performance['reason'])}</p>"
    )
    metrics = performance.get("metrics")
    if not metrics:
        return heading
    at_training = performance.get("metrics_at_training", {})
    rows = [
        [
            html.escape(name),
            direction(name),
            _number(at_training.get(name)),
            _number(value),
            _comparison(name, at_training.get(name), value),
        ]
        for name, value in sorted(metrics.items())
    ]
    return heading + _table(
        ("Metric", "Better is", "Held-out rows at training", "This window", "Compared"), rows
    )


def _comparison(metric: str, before: float | None, current: float) -> str:
    """Whether a metric became better or worse since training."""
    if before is None:
        return "–"
    if current == before:
        return "equal"
    return "better" if (current > before) == (direction(metric) == "higher") else "worse"


def _signals_table(signals: Mapping[str, SignalResult]) -> str:
    """A table of all signals, the worst first."""
    if not signals:
        return ""
    order = ("bad", "suspected", "undetermined", "ok")
    rows = [
        [
            html.escape(signal_title(name)),
            page.tag(signal["state"]),
            html.escape(signal["since"] or "–"),
            html.escape(signal["reason"]),
        ]
        for name, signal in sorted(signals.items(), key=lambda item: order.index(item[1]["state"]))
    ]
    return "<h2>Signals</h2>" + _table(("Signal", "State", "Since", "Reason"), rows)


def _columns_table(columns: Sequence[ColumnDrift]) -> str:
    if not columns:
        return ""
    heads = (
        "Column",
        "Status",
        "Importance",
        "Effect on expected loss",
        "PSI",
        "PSI threshold",
        "Nulls, reference",
        "Nulls, window",
        "Rows",
        "Reason",
    )
    return "<h2>Columns</h2>" + _table(heads, [_column_row(c) for c in columns])


def _column_row(column: ColumnDrift) -> list[str]:
    is_prediction = column.role == "prediction"
    attributed = "–"
    if column.attributed_loss is not None:
        attributed = (
            f"{round(column.attributed_loss, 3) + 0.0:+.1%}"  # + 0.0 removes the sign of a negative zero
        )
    return [
        _name(column.column) + (' <span class="soft">(output of the model)</span>' if is_prediction else ""),
        page.tag(column.status),
        "–" if is_prediction else _share(column.importance),
        attributed,
        "–" if column.psi is None else f"{column.psi:.3f}",
        f"{column.threshold:.3f}",
        _share(column.reference_nulls),
        _share(column.current_nulls),
        f"{column.rows:,}",
        html.escape(column.reason),
    ]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render a table; the cells are HTML."""
    top = "".join(f"<th>{head}</th>" for head in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def _name(column: str) -> str:
    """A column's name as HTML."""
    return html.escape(html.printable(column, MAX_TEXT_LENGTH))


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "–"
