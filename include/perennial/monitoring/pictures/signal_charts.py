"""Charts of what monitoring follows, over windows: each with its limit, and the changes of the champion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from perennial.charts.line_chart import Event, LineChart, Series
from perennial.monitoring.results import MonitoringResult, WindowRecord
from perennial.spec.alerts import signal_title
from perennial.spec.constraints import metric_in_words

_STATE_ORDER = ("bad", "suspected", "ok", "undetermined")
_STATES_OF_VERDICTS = {"drifted": "bad", "dropped": "bad", "suspected": "suspected"}


class SignalChart(NamedTuple):
    """The course of one signal.

    Attributes:
        name: of the signal.
        state: its latest state.
        chart: its value, or for a series the level of the test, with the limit.
    """

    name: str
    state: str
    chart: LineChart


def overview_charts(
    history: Sequence[WindowRecord], result: MonitoringResult, drift_limit: float
) -> list[LineChart]:
    """The course of the metric and of the drift.

    Args:
        history: earlier windows, in order.
        result: the latest window.
        drift_limit: drifted share of the importance from which a window is suspicious.
    """
    windows = [*history, WindowRecord.of_result(result)]
    events = _champion_changes(windows)
    metric = metric_in_words(result["performance"].get("metric", ""))
    performance = LineChart(
        f"Performance: {metric} of the labelled rows" if metric else "Performance",
        [
            Series(
                "window that ends here",
                [(w.as_of, w.loss) for w in windows],
                states=_marked((w.as_of, w.performance) for w in windows),
            ),
            Series(
                "held-out rows at training", [(w.as_of, w.loss_at_training) for w in windows], "reference"
            ),
        ],
        events,
    )
    drift = LineChart(
        "Drift: share of the feature importance that drifted",
        [
            Series(
                "window that ends here",
                [(w.as_of, w.drift_share) for w in windows],
                states=_marked((w.as_of, w.verdict) for w in windows),
            ),
            Series("limit", [(w.as_of, drift_limit) for w in windows], "limit"),
        ],
        events,
    )
    return [chart for chart in (performance, drift) if not chart.is_empty]


def signal_charts(history: Sequence[WindowRecord], result: MonitoringResult) -> list[SignalChart]:
    """The course of each signal that has numbers, the worst first.

    Args:
        history: earlier windows, in order.
        result: the latest window.
    """
    windows = [*history, WindowRecord.of_result(result)]
    events = _champion_changes(windows)
    drawn = []
    for name, current in result["signals"].items():
        course = [(w.as_of, w.signals.get(name)) for w in windows]
        is_series = any(signal is not None and signal.level is not None for _, signal in course)
        values = [(day, None if s is None else s.level if is_series else s.value) for day, s in course]
        chart = LineChart(
            signal_title(name),
            [
                Series(
                    "level of the test for a change" if is_series else "value",
                    values,
                    states=_marked((day, s.state) for day, s in course if s is not None),
                ),
                Series("limit", [(day, None if s is None else s.limit) for day, s in course], "limit"),
            ],
            events,
        )
        if any(value is not None for _, value in values):
            drawn.append(SignalChart(name, current["state"], chart))
    return sorted(drawn, key=lambda c: (_STATE_ORDER.index(c.state), c.name))


def _marked(states: Iterable[tuple[str, str]]) -> Mapping[str | float, str]:
    """The windows that are emphasised, with their state."""
    marked: dict[str | float, str] = {day: _STATES_OF_VERDICTS.get(state, state) for day, state in states}
    return {day: state for day, state in marked.items() if state in ("bad", "suspected")}


def _champion_changes(windows: Sequence[WindowRecord]) -> list[Event]:
    """The first window of each champion but the first one."""
    events, before = [], ""
    for window in windows:
        if before and window.version and window.version != before:
            events.append(Event(window.as_of, f"version {window.version} is champion", f"v{window.version}"))
        before = window.version or before
    return events
