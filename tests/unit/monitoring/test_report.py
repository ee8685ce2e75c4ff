from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from perennial.core import patches
from perennial.monitoring import report
from perennial.monitoring.drift_verdict import ColumnDrift
from perennial.monitoring.results import MonitoringResult


def column_drift(column: str, status: Any = "stable", psi: float = 0.1) -> ColumnDrift:
    return ColumnDrift(column, "feature", status, "", psi, 0.2, 0.0, 0.0, 1000, 0.5)


def sample(**columns: list[Any]) -> dict[str, pa.ChunkedArray]:
    return {c: pa.chunked_array([v]) for c, v in columns.items()}


RESULT: MonitoringResult = {
    "verdict": "drifted",
    "reason": "because",
    "start": "2024-01-01",
    "as_of": "2024-01-07",
    "suspicious": True,
    "drift_share": 0.5,
    "evaluated_share": 1.0,
    "drifted": ["x"],
    "columns": {"stable": 1, "drifted": 1, "undetermined": 0},
    "model_version": "1",
    "champion_as_of": "2023-12-01",
    "performance": {"verdict": "undetermined", "degraded": None, "reason": "no labels"},
    "signals": {},
    "trial": None,
    "report": "",
    "status": "monitored",
}
NUMBERS = [float(i % 10) for i in range(100)]


def render(columns: list[ColumnDrift], drift_report: report.DriftReport) -> str:
    return report.render_page("toy", RESULT, columns, drift_report)


def test_evidently_shows_our_scores_and_our_verdict() -> None:
    columns = [column_drift("x", "drifted", 1.234), column_drift("y", "stable", 0.05)]
    side = sample(x=NUMBERS, y=NUMBERS)  # equal on both sides: Evidently alone would detect nothing
    drift_report = report.evidently_drift_report(columns, side, side, [], 0.5)
    values = {m["config"].get("column"): m["value"] for m in drift_report.results["metrics"]}
    assert values["x"] == 1.234 and values["y"] == 0.05
    assert values[None] == {"count": 1.0, "share": 0.5}
    assert drift_report.omitted_columns == {} and "<body>" in drift_report.page
    assert "because" in render(columns, drift_report)


def test_plots_that_are_not_drawn_are_not_shown_either(monkeypatch: pytest.MonkeyPatch) -> None:
    from evidently.metrics import column_statistics

    drawn = []
    draw = column_statistics.plot_distr_with_perc_button
    monkeypatch.setattr(
        column_statistics, "plot_distr_with_perc_button", lambda **how: drawn.append(how) or draw(**how)
    )
    columns, side = [column_drift("x"), column_drift("t")], sample(x=NUMBERS, t=["a", "b"] * 50)
    patched = report.evidently_drift_report(columns, side, side, ["t"], 0.5)
    assert not drawn
    monkeypatch.setattr(patches, "evidently_drift_table_only", nullcontext)
    unpatched = report.evidently_drift_report(columns, side, side, ["t"], 0.5)
    assert len(drawn) == 2 and patched.page
    assert patched.results["metrics"] == unpatched.results["metrics"]
    assert len(patched.page) == len(unpatched.page)  # ids in it differ from run to run


HOSTILE = "</script><script>alert(1)</script>"


def test_no_markup_comes_through_names_or_values() -> None:
    columns = [column_drift(HOSTILE), column_drift("t"), column_drift("<b>&")]
    side = sample(
        **{
            HOSTILE: NUMBERS,
            "t": [HOSTILE, "<img src=x onerror=alert(1)>", "=1+1", "b"] * 25,
            "<b>&": NUMBERS,
        }
    )
    drift_report = report.evidently_drift_report(columns, side, side, ["t"], 0.5)
    omitted = drift_report.omitted_columns | {HOSTILE + "2": HOSTILE}
    page = render(columns, replace(drift_report, omitted_columns=omitted))
    assert "alert(1)" in page
    for markup in (HOSTILE, "<img src=x", "<script>alert", "<b>&"):
        assert markup not in page
    names = {m["config"].get("column") for m in drift_report.results["metrics"]}
    assert names == {None, HOSTILE, "t", "<b>&"}, "whole in the results, which are JSON"


def test_names_that_look_alike_when_escaped_stay_apart() -> None:
    side = sample(**{"<a": NUMBERS, "‹a": NUMBERS})
    results = report.evidently_drift_report(
        [column_drift("<a"), column_drift("‹a")], side, side, [], 0.5
    ).results
    assert len({m["config"].get("column") for m in results["metrics"]}) == 3


@pytest.mark.parametrize(
    "broken",
    [
        [None] * 100,
        [float("nan")] * 100,
        [float("inf")] * 100,
        [3.0] * 100,
        ["text"] * 100,
        pytest.param("missing", id="missing"),
    ],
)
def test_a_broken_column_is_omitted_and_listed(broken: Any) -> None:
    current = sample(good=NUMBERS, bad=[3.0] * 100 if broken == "missing" else broken)
    reference = sample(good=NUMBERS, bad=[3.0] * 100)
    if broken == "missing":
        del current["bad"]
    columns = [column_drift("bad"), column_drift("good")]
    drift_report = report.evidently_drift_report(columns, reference, current, [], 0.5)
    assert list(drift_report.omitted_columns) == ["bad"] and "bad" in render(columns, drift_report)
    assert len(drift_report.results["metrics"]) == 2


def test_infinities_and_long_text_are_drawn() -> None:
    side = sample(
        x=[*NUMBERS, float("inf"), float("-inf"), None], t=["x" * 10_000_000, "b", None] + ["c"] * 100
    )
    drift_report = report.evidently_drift_report(
        [column_drift("x"), column_drift("t")], side, side, ["t"], 0.5
    )
    assert drift_report.omitted_columns == {} and len(drift_report.results["metrics"]) == 3
    assert len(drift_report.page) < 10_000_000


def test_a_column_on_which_evidently_fails_does_not_affect_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = report._run

    def fail_on_bad(frames: Any, *rest: Any) -> Any:
        if "bad" in frames:
            raise ValueError("a test")
        return run(frames, *rest)

    monkeypatch.setattr(report, "_run", fail_on_bad)
    side = sample(good=NUMBERS, bad=NUMBERS)
    columns = [column_drift("bad"), column_drift("good")]
    drift_report = report.evidently_drift_report(columns, side, side, [], 0.5)
    assert "ValueError" in drift_report.omitted_columns["bad"]
    assert len(drift_report.results["metrics"]) == 2 and drift_report.page


def test_a_page_without_plots_still_shows_the_verdict() -> None:
    columns = [column_drift("x")]
    drift_report = report.evidently_drift_report(columns, {}, {}, [], 0.5)
    assert (drift_report.page, drift_report.results) == ("", {})
    text = render(columns, drift_report)
    assert text.startswith("<!DOCTYPE html>") and "drifted" in text and "because" in text
