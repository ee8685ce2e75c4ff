"""The charts of the console's pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perennial.charts.line_chart import Event, LineChart, Series
from perennial.charts.markup import Markup
from perennial.charts.partition_calendar import PartitionCalendar, Square
from perennial.charts.sparkline import Sparkline
from perennial.console._model_page import ModelPage, Verdict
from perennial.core.partitions import Cadence
from perennial.spec.alerts import signal_title
from perennial.spec.constraints import metric_in_words
from perennial.status.partition_states import STATES, PartitionState
from perennial.status.record import ModelStatus

_STATES_OF_VERDICTS = {"drifted": "bad", "dropped": "bad", "suspected": "suspected"}
_STATE_ORDER = ("bad", "suspected", "undetermined", "ok")


def performance_sparkline(status: ModelStatus) -> Markup:
    """The course of the metric."""
    verdict = status.verdict.performance if status.verdict else ""
    values = [value for _, value in status.performance]
    return Sparkline(metric_in_words(status.metric), values, state=_STATES_OF_VERDICTS.get(verdict, "")).svg()


def drift_sparkline(status: ModelStatus) -> Markup:
    """The course of the drifted share, with its limit."""
    verdict = status.verdict.verdict if status.verdict else ""
    values = [value for _, value in status.drift]
    state = _STATES_OF_VERDICTS.get(verdict, "")
    return Sparkline("drifted share of the importance", values, status.drift_limit, state).svg()


def of_model(page: ModelPage, base: str) -> dict[str, Any]:
    """The charts of a model's page.

    Args:
        page: its content.
        base: path under which the console is mounted.
    """
    events = _champion_changes(page.verdicts, page.changes)
    return {
        "performance": _performance(page.verdicts, events),
        "drift": _drift(page.verdicts, page.drift_limit, events),
        "rows": _rows(page.partitions),
        "signals": _signals(page.verdicts, events),
        "calendar": _calendar(page, base),
    }


def _champion_changes(verdicts: Sequence[Verdict], changes: Sequence[Mapping[str, Any]]) -> list[Event]:
    """The first verdict on each champion after the first one."""
    decided = {change["model_version"]: change for change in changes}
    events, before = [], ""
    for verdict in verdicts:
        if before and verdict.version and verdict.version != before:
            change = decided.get(verdict.version, {})
            how = f"{change['decision']} by {change['actor']}" if change else "became champion"
            events.append(Event(verdict.as_of, f"version {verdict.version} {how}", f"v{verdict.version}"))
        before = verdict.version or before
    return events


def _performance(verdicts: Sequence[Verdict], events: Sequence[Event]) -> Markup:
    metric = next((v.details["metric"] for v in reversed(verdicts) if v.details.get("metric")), "")
    title = f"Performance: {metric_in_words(metric)} of the labelled rows" if metric else "Performance"
    series = [
        Series(
            "window that ends here",
            [(v.as_of, v.details.get("performance")) for v in verdicts],
            states=_verdict_states(verdicts, "performance_verdict"),
        ),
        Series(
            "held-out rows at training",
            [(v.as_of, v.details.get("performance_at_training")) for v in verdicts],
            "reference",
        ),
    ]
    return LineChart(title, series, events).figure()


def _drift(verdicts: Sequence[Verdict], limit: float | None, events: Sequence[Event]) -> Markup:
    series = [
        Series(
            "window that ends here",
            [(v.as_of, v.details.get("drift_share")) for v in verdicts],
            states=_verdict_states(verdicts, "verdict"),
        )
    ]
    if limit is not None:
        series.append(Series("limit", [(v.as_of, limit) for v in verdicts], "limit"))
    return LineChart("Drift: share of the feature importance that drifted", series, events).figure()


def _verdict_states(verdicts: Sequence[Verdict], key: str) -> dict[str | float, str]:
    states = {v.as_of: _STATES_OF_VERDICTS.get(v.details.get(key, ""), "") for v in verdicts}
    return {as_of: state for as_of, state in states.items() if state}


def _rows(partitions: Sequence[PartitionState]) -> Markup:
    published = [(p.key, float(p.rows) if p.state not in ("none", "missing") else None) for p in partitions]
    quarantined = [
        (p.key, float(p.quarantined) if p.state not in ("none", "missing") else None) for p in partitions
    ]
    series = [Series("published", published), Series("in quarantine", quarantined)]
    return LineChart("Rows of a partition", series).figure()


def _signals(verdicts: Sequence[Verdict], events: Sequence[Event]) -> list[tuple[str, str, str, Markup]]:
    """Name, latest state, latest reason and chart of each signal, the worst first."""
    if not verdicts:
        return []
    latest = verdicts[-1].details.get("signals", {})
    rows = []
    for name, current in latest.items():
        history = [(v.as_of, v.details.get("signals", {}).get(name) or {}) for v in verdicts]
        is_series = any(signal.get("level") is not None for _, signal in history)
        key, what = ("level", "level of the test for a change") if is_series else ("value", "value")
        states: dict[str | float, str] = {
            as_of: signal["state"] for as_of, signal in history if signal.get("state") in ("bad", "suspected")
        }
        series = [
            Series(what, [(as_of, signal.get(key)) for as_of, signal in history], states=states),
            Series("limit", [(as_of, signal.get("limit")) for as_of, signal in history], "limit"),
        ]
        chart = LineChart(signal_title(name), series, events)
        picture = Markup("") if chart.is_empty else chart.figure(height=150)
        rows.append((signal_title(name), current.get("state", ""), current.get("reason", ""), picture))
    order = {state: i for i, state in enumerate(_STATE_ORDER)}
    return sorted(rows, key=lambda row: (order.get(row[1], 9), row[0]))


def _calendar(page: ModelPage, base: str) -> Markup:
    name = page.overview.name
    squares = [
        Square(
            p.key,
            p.state,
            p.text,
            p.quarantined > 0,
            f"{base}/models/{name}/quarantine/{p.key}" if p.quarantined or p.state == "failed" else "",
        )
        for p in page.partitions
    ]
    present = {square.state for square in squares}
    states = {state: text for state, text in STATES.items() if state in present}
    flag = "rows in quarantine" if any(square.is_flagged for square in squares) else ""
    return PartitionCalendar(
        "Partitions", Cadence(page.unit, page.week_starts), squares, states, flag
    ).figure()
