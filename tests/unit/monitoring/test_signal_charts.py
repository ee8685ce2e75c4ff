"""The charts at the top of a report."""

from __future__ import annotations

from typing import Any

from perennial.monitoring.pictures.signal_charts import overview_charts, signal_charts
from perennial.monitoring.results import SignalRecord, WindowRecord

SIGNALS = {
    "performance": {"state": "bad", "value": 0.1, "limit": 5.0, "level": 7.0},
    "volume": {"state": "ok", "value": 1.2, "limit": 2.0, "level": None},
    "skew": {"state": "undetermined", "value": None, "limit": None, "level": None},
}
RESULT: Any = {
    "as_of": "2024-01-03",
    "model_version": "2",
    "verdict": "drifted",
    "drift_share": 0.4,
    "performance": {
        "verdict": "dropped",
        "metric": "log_loss",
        "metrics": {"log_loss": 0.5},
        "metrics_at_training": {"log_loss": 0.3},
    },
    "signals": SIGNALS,
}
HISTORY = [
    WindowRecord("2024-01-01", "1", "ok", 0.0, "ok", 0.31, 0.3, {"volume": SignalRecord("ok", 1.0, 2.0, None)}),
    WindowRecord("2024-01-02", "1", "suspected", 0.2, "ok", None, 0.3,
                 {"performance": SignalRecord("suspected", 0.05, 5.0, 3.0)}),
]  # fmt: skip


def series(chart: Any) -> dict[str, list[Any]]:
    return {s.name: list(s.points) for s in chart.series}


def test_metric_and_drift_over_the_windows_with_what_they_are_compared_with() -> None:
    performance, drift = overview_charts(HISTORY, RESULT, 0.1)
    assert performance.title == "Performance: log loss of the labelled rows"
    values = series(performance)
    assert values["window that ends here"] == [
        ("2024-01-01", 0.31),
        ("2024-01-02", None),
        ("2024-01-03", 0.5),
    ]
    assert [v for _, v in values["held-out rows at training"]] == [0.3, 0.3, 0.3]
    assert performance.series[0].states == {"2024-01-03": "bad"}
    assert drift.series[0].states == {"2024-01-02": "suspected", "2024-01-03": "bad"}
    assert [v for _, v in series(drift)["limit"]] == [0.1, 0.1, 0.1]
    assert [(e.x, e.short) for e in drift.events] == [("2024-01-03", "v2")]


def test_signals_with_their_limits_the_worst_first() -> None:
    charts = signal_charts(HISTORY, RESULT)
    assert [(c.name, c.state) for c in charts] == [("performance", "bad"), ("volume", "ok")]
    level = series(charts[0].chart)
    assert level["level of the test for a change"] == [
        ("2024-01-01", None),
        ("2024-01-02", 3.0),
        ("2024-01-03", 7.0),
    ]
    assert level["limit"][-1] == ("2024-01-03", 5.0)
    assert series(charts[1].chart)["value"][0] == ("2024-01-01", 1.0)


def test_without_numbers_there_are_no_charts() -> None:
    empty = RESULT | {"drift_share": None, "performance": {"verdict": "undetermined"}, "signals": {}}
    assert signal_charts([], empty) == []
    assert [c.title for c in overview_charts([], empty, 0.1)] == [
        "Drift: share of the feature importance that drifted"
    ]
