"""The monitoring report: the verdict in tables on top, Evidently's picture of the same columns below, in one page.

Evidently draws on a sample of rows; the scores it shows are ours, computed on all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from perennial.core import html, patches

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from perennial.monitoring.drift_verdict import ColumnDrift

    Sample = Mapping[str, "pa.ChunkedArray"]


@dataclass(frozen=True)
class DriftReport:
    """Evidently's report.

    Attributes:
        page: HTML; empty where nothing could be drawn.
        results: of Evidently, as JSON.
        omitted_columns: by column that the page does not show, why.
    """

    page: str = ""
    results: dict[str, Any] = field(default_factory=dict)
    omitted_columns: dict[str, str] = field(default_factory=dict)


METHOD = "perennial_psi"
#: Categories drawn; the others fall together.
MAX_CATEGORIES = 20
MAX_TEXT_LENGTH = 60
#: Columns drawn, the heaviest first: Evidently needs about 60 ms and 10 kB for each.
MAX_COLUMNS = 100
_scores: ContextVar[Mapping[str, tuple[float, bool]]] = ContextVar("_scores")
_COLOURS = {
    "ok": "#1a7f37",
    "stable": "#1a7f37",
    "suspected": "#9a6700",
    "bad": "#cf222e",
    "drifted": "#cf222e",
    "dropped": "#cf222e",
    "undetermined": "#57606a",
}
_STYLE = """
.perennial {font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1f2328}
.perennial h1 {font-size: 1.6rem; margin: 0} .perennial h2 {font-size: 1.1rem; margin: 1.6rem 0 .4rem}
.perennial table {border-collapse: collapse; width: 100%}
.perennial th, .perennial td {padding: .25rem .6rem; border-bottom: 1px solid #d0d7de; text-align: left}
.perennial .tag {color: #fff; border-radius: 1rem; padding: .05rem .6rem; font-size: .85rem; white-space: nowrap}
.perennial .soft {color: #57606a}
"""


def evidently_drift_report(
    findings: Sequence[ColumnDrift],
    reference: Sample,
    current: Sample,
    categorical: Sequence[str],
    drift_share: float,
) -> DriftReport:
    """Evidently's drift report of samples of both sides.

    A column that cannot be drawn is left out, and so is one that makes Evidently fail.

    Args:
        reference, current: samples, values by column; a column that only one of them has is left out.

    """
    by_name = {f.column: f for f in findings}
    left_out: dict[str, str] = {}
    frames: dict[str, tuple[pd.Series, pd.Series]] = {}
    for column in by_name:
        if len(frames) == MAX_COLUMNS:
            left_out[column] = f"{MAX_COLUMNS} columns are drawn at most"
        elif column not in reference or column not in current:
            left_out[column] = "no sample of it is kept on both sides"
        elif (pair := _series(reference, current, column, column in categorical)) is None:
            left_out[column] = "empty or constant on both sides, or empty on one"
        else:
            frames[column] = pair
    shown = _names(frames)
    page = ""
    results: dict[str, Any] = {}
    if frames:
        try:
            page, results = _run(frames, shown, by_name, categorical, drift_share)
        except (
            Exception
        ):  # Evidently raises whatever pandas and numpy raise; find who did it, and draw the rest
            for column in list(frames):
                try:
                    _run({column: frames[column]}, shown, by_name, categorical, drift_share)
                except Exception as error:
                    left_out[column] = f"Evidently failed on it ({type(error).__name__})"
                    del frames[column]
            try:
                page, results = _run(frames, shown, by_name, categorical, drift_share) if frames else ("", {})
            except Exception as error:
                left_out |= dict.fromkeys(frames, f"Evidently failed ({type(error).__name__})")
    return DriftReport(page, results, left_out)


def _names(columns: Mapping[str, Any]) -> dict[str, str]:
    """A name that can be shown for each column, no two alike."""
    names: dict[str, str] = {}
    for column in columns:
        name = html.for_evidently(column, MAX_TEXT_LENGTH)
        while name in names.values():
            name += "′"
        names[column] = name
    return names


def _series(
    reference: Sample, current: Sample, column: str, categorical: bool
) -> tuple[pd.Series, pd.Series] | None:
    import numpy as np
    import pandas as pd

    sides = [s[column].to_pandas() for s in (reference, current)]
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
    return _scores.get()[str(current.name)]


def _register() -> None:
    from evidently.legacy.calculations.stattests import registry
    from evidently.legacy.core import ColumnType

    test = registry.StatTest(
        name=METHOD,
        display_name="PSI on the training rows' bins, all rows",
        allowed_feature_types=[ColumnType.Numerical, ColumnType.Categorical],
    )
    registry.register_stattest(test, _score)


def _run(
    frames: Mapping[str, tuple[pd.Series, pd.Series]],
    shown: Mapping[str, str],
    findings: Mapping[str, ColumnDrift],
    categorical: Sequence[str],
    drift_share: float,
) -> tuple[str, dict[str, Any]]:
    import os

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
    thresholds = {shown[c]: findings[c].threshold for c in frames}
    token = _scores.set({shown[c]: (findings[c].psi or 0.0, findings[c].status == "drifted") for c in frames})
    try:
        report = Report(
            [DataDriftPreset(method=METHOD, per_column_threshold=thresholds, drift_share=drift_share)]
        )
        with patches.evidently_drift_table_only():
            done = report.run(sides[1], sides[0])
        page = html.placeholders_to_script(done.get_html_str(as_iframe=False))
        return page, html.restore(json.loads(done.json()))
    finally:
        _scores.reset(token)


def render_page(
    title: str,
    result: Mapping[str, Any],
    findings: Sequence[ColumnDrift],
    drift_report: DriftReport,
    trial_summary: str = "",
) -> str:
    """The whole page: the verdict, then Evidently's, in one document.

    Args:
        trial_summary: how the challenger on trial compares with the champion, in words.
    """
    top = _top(title, result, findings, drift_report.omitted_columns, trial_summary)
    if "<body>" in drift_report.page:
        head, _, rest = drift_report.page.partition("<body>")
        return f"{head}<body>{top}{rest}"
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title></head>'
        f"<body>{top}</body></html>"
    )


def _tag(text: object) -> str:
    return f'<span class="tag" style="background:{_COLOURS.get(str(text), "#57606a")}">{html.escape(text)}</span>'


def _name(column: str) -> str:
    """A column's name as HTML."""
    return html.escape(html.printable(column, MAX_TEXT_LENGTH))


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _top(
    title: str,
    result: Mapping[str, Any],
    findings: Sequence[ColumnDrift],
    left_out: Mapping[str, str],
    trial_summary: str,
) -> str:
    performance = result.get("performance") or {}
    judged = performance.get("verdict", "undetermined")
    window = f"Rows of {result.get('start')} to {result.get('as_of')} against what version "
    window += (
        f"{result.get('model_version')} was trained on. Drifted: {_share(result.get('drift_share'))} of the "
    )
    window += f"model's weight; judged: {_share(result.get('evaluated_share'))}."
    heads = (
        "Column",
        "Verdict",
        "Weight",
        "Loss explained",
        "PSI",
        "Drifts above",
        "Empty then",
        "Empty now",
        "Rows",
        "Why",
    )
    parts = [
        f'<style>{_STYLE}</style><section class="perennial">',
        f"<h1>{html.escape(title)} {_tag(result['verdict'])}</h1><p>{html.escape(result.get('reason', ''))}</p>",
        f'<p class="soft">{html.escape(window)}</p>',
        _signals(result.get("signals") or {}),
        "<h2>Columns</h2>" + _table(heads, [_row(f) for f in findings]) if findings else "",
        f"<h2>Performance {_tag(judged)}</h2><p>{html.escape(performance.get('reason', ''))}</p>",
    ]
    if metrics := performance.get("metrics"):
        then = performance.get("metrics_at_training", {})
        cells = [[html.escape(m), _number(then.get(m)), _number(v)] for m, v in sorted(metrics.items())]
        parts.append(_table(("Metric", "Held-out rows, at training", "This window"), cells))
    if trial := result.get("trial"):
        what = f"Version {trial['version']}, beside this one: {trial_summary}"
        parts.append(f"<h2>Challenger on trial {_tag(trial['state'])}</h2><p>{html.escape(what)}</p>")
    if left_out:
        items = "".join(f"<li>{_name(c)}: {html.escape(why)}</li>" for c, why in left_out.items())
        parts.append(f"<h2>Not in the picture below</h2><ul>{items}</ul>")
    return "".join(parts) + "</section>"


def _signals(signals: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of all signals, those that need a person first."""
    order = ("bad", "suspected", "undetermined", "ok")
    rows = [
        [
            html.escape(name),
            _tag(s["state"]),
            html.escape(s.get("since") or "–"),
            html.escape(s["reason"]),
        ]
        for name, s in sorted(signals.items(), key=lambda item: order.index(item[1]["state"]))
    ]
    return "<h2>Signals</h2>" + _table(("Signal", "State", "Since", "Why"), rows) if rows else ""


def _row(f: ColumnDrift) -> list[str]:
    prediction = f.role == "prediction"
    note = ' <span class="soft">(what the model says)</span>' if prediction else ""
    return [
        _name(f.column) + note,
        _tag(f.status),
        "–" if prediction else _share(f.importance),
        "–"
        if f.attributed_loss is None
        else f"{round(f.attributed_loss, 3) + 0.0:+.1%}",  # no minus before a zero
        "–" if f.psi is None else f"{f.psi:.3f}",
        f"{f.threshold:.3f}",
        _share(f.reference_nulls),
        _share(f.current_nulls),
        f"{f.rows:,}",
        html.escape(f.reason),
    ]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{h}</th>" for h in heads)
    return (
        f"<table><tr>{top}</tr>"
        + "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in row)}</tr>" for row in rows)
        + "</table>"
    )


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "–"
