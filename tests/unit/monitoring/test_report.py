from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import pyarrow as pa
import pytest

from perennial.monitoring import report
from perennial.monitoring.drift_verdict import ColumnDrift


def finding(column: str, status: Any = "stable", psi: float = 0.1) -> ColumnDrift:
    return ColumnDrift(column, "feature", status, "", psi, 0.2, 0.0, 0.0, 1000, 0.5)


def sample(**columns: list[Any]) -> dict[str, pa.ChunkedArray]:
    return {c: pa.chunked_array([v]) for c, v in columns.items()}


RESULT = {
    "verdict": "drifted",
    "reason": "because",
    "start": "2024-01-01",
    "as_of": "2024-01-07",
    "performance": {},
}
NUMBERS = [float(i % 10) for i in range(100)]


def whole(findings: list[ColumnDrift], page: str, left_out: dict[str, str]) -> str:
    return report.render_page("toy", RESULT, findings, left_out, page)


def test_evidently_shows_our_scores_and_our_verdict() -> None:
    found = [finding("x", "drifted", 1.234), finding("y", "stable", 0.05)]
    side = sample(x=NUMBERS, y=NUMBERS)  # alike on both sides: Evidently by itself would find nothing
    page, results, left_out = report.evidently_drift_report(found, side, side, [], 0.5)
    values = {m["config"].get("column"): m["value"] for m in results["metrics"]}
    assert values["x"] == 1.234 and values["y"] == 0.05
    assert values[None] == {"count": 1.0, "share": 0.5}
    assert left_out == {} and "<body>" in page
    assert "because" in whole(found, page, left_out)


def test_what_is_not_drawn_is_not_shown_either(monkeypatch: pytest.MonkeyPatch) -> None:
    from evidently.metrics import column_statistics

    drawn = []
    draw = column_statistics.plot_distr_with_perc_button
    monkeypatch.setattr(
        column_statistics, "plot_distr_with_perc_button", lambda **how: drawn.append(how) or draw(**how)
    )
    found, side = [finding("x"), finding("t")], sample(x=NUMBERS, t=["a", "b"] * 50)
    page, results, _ = report.evidently_drift_report(found, side, side, ["t"], 0.5)
    assert not drawn
    monkeypatch.setattr(report, "_drawn_once", nullcontext)
    whole_page, whole_results, _ = report.evidently_drift_report(found, side, side, ["t"], 0.5)
    assert len(drawn) == 2 and page
    assert results["metrics"] == whole_results["metrics"]
    assert len(page) == len(whole_page)  # ids in it differ from run to run


HOSTILE = "</script><script>alert(1)</script>"


def test_no_markup_comes_through_names_or_values() -> None:
    found = [finding(HOSTILE), finding("t"), finding("<b>&")]
    side = sample(
        **{
            HOSTILE: NUMBERS,
            "t": [HOSTILE, "<img src=x onerror=alert(1)>", "=1+1", "b"] * 25,
            "<b>&": NUMBERS,
        }
    )
    page, results, left_out = report.evidently_drift_report(found, side, side, ["t"], 0.5)
    text = whole(found, page, left_out | {HOSTILE + "2": HOSTILE}) + json.dumps(results)
    assert "alert(1)" in text
    for markup in (HOSTILE, "<img src=x", "<script>alert", "<b>&"):
        assert markup not in text


def test_names_that_look_alike_when_made_plain_stay_apart() -> None:
    found = [finding("<a"), finding("‹a")]
    _, results, _ = report.evidently_drift_report(
        found, sample(**{"<a": NUMBERS, "‹a": NUMBERS}), sample(**{"<a": NUMBERS, "‹a": NUMBERS}), [], 0.5
    )
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
def test_a_broken_column_is_left_out_and_said(broken: Any) -> None:
    now = sample(good=NUMBERS, bad=[3.0] * 100 if broken == "missing" else broken)
    then = sample(good=NUMBERS, bad=[3.0] * 100)
    if broken == "missing":
        del now["bad"]
    found = [finding("bad"), finding("good")]
    page, results, left_out = report.evidently_drift_report(found, then, now, [], 0.5)
    assert list(left_out) == ["bad"] and "bad" in whole(found, page, left_out)
    assert len(results["metrics"]) == 2


def test_infinities_and_long_text_are_drawn() -> None:
    found = [finding("x"), finding("t")]
    side = sample(
        x=[*NUMBERS, float("inf"), float("-inf"), None], t=["x" * 10_000_000, "b", None] + ["c"] * 100
    )
    page, results, left_out = report.evidently_drift_report(found, side, side, ["t"], 0.5)
    assert left_out == {} and len(results["metrics"]) == 3 and len(page) < 10_000_000


def test_a_column_on_which_evidently_fails_does_not_take_the_others_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = report._run

    def moody(frames: Any, *rest: Any) -> Any:
        if "bad" in frames:
            raise ValueError("numpy is unhappy")
        return run(frames, *rest)

    monkeypatch.setattr(report, "_run", moody)
    side = sample(good=NUMBERS, bad=NUMBERS)
    page, results, left_out = report.evidently_drift_report(
        [finding("bad"), finding("good")], side, side, [], 0.5
    )
    assert "ValueError" in left_out["bad"] and len(results["metrics"]) == 2 and page


def test_a_page_without_a_picture_still_tells_the_verdict() -> None:
    page, results, left_out = report.evidently_drift_report([finding("x")], {}, {}, [], 0.5)
    assert (page, results) == ("", {})
    text = whole([finding("x")], page, left_out)
    assert text.startswith("<!DOCTYPE html>") and "drifted" in text and "because" in text
