from __future__ import annotations

from typing import Any

import pytest

from perennial.monitoring.drift_verdict import (
    ColumnDrift,
    compare_columns,
    summarize,
    verdict_with_persistence,
)
from perennial.monitoring.histograms import BinCounts, ReferenceColumn
from perennial.spec.model_spec import MonitoringSpec

POLICY = MonitoringSpec(min_rows=100)
EVEN = ReferenceColumn("numeric", [500, 500, 0], edges=[0.5])


def one(counts: list[int] | None, shape: ReferenceColumn = EVEN, **policy: Any) -> ColumnDrift:
    rows = sum(counts) if counts is not None else 1000
    chosen = POLICY.model_copy(update=policy)
    return compare_columns(
        {"x": shape}, BinCounts(rows, {"x": counts}), BinCounts(0, {}), {"x": 1.0}, chosen
    )[0]


@pytest.mark.parametrize(
    ("counts", "shape", "status", "reason"),
    [
        ([500, 500, 0], EVEN, "stable", ""),
        ([100, 900, 0], EVEN, "drifted", "PSI"),
        ([45, 45, 0], EVEN, "undetermined", "90 rows in the window"),
        (None, EVEN, "undetermined", "not there"),
        ([500, 500, 120], EVEN, "drifted", "without a value"),
        ([0, 0, 1000], EVEN, "drifted", "without a value"),
        (
            [500, 500, 0],
            ReferenceColumn("numeric", [0, 1000], edges=[]),
            "undetermined",
            "empty in the reference",
        ),
        (
            [500, 500, 0],
            ReferenceColumn("numeric", [1000, 0, 0], edges=[0.5]),
            "undetermined",
            "constant in the reference",
        ),
        ([800, 0, 200], ReferenceColumn("numeric", [1000, 0, 0], edges=[0.5]), "drifted", "without a value"),
        (
            [50, 0, 950],
            ReferenceColumn("numeric", [50, 50, 900], edges=[0.5]),
            "undetermined",
            "rows with a value",
        ),
        (
            [500, 500, 0],
            ReferenceColumn("numeric", [20, 20, 0], edges=[0.5]),
            "undetermined",
            "rows to compare with",
        ),
    ],
)
def test_a_column(counts: list[int] | None, shape: ReferenceColumn, status: str, reason: str) -> None:
    if shape.edges == [] and counts is not None:
        counts = [sum(counts), 0]
    found = one(counts, shape)
    assert (found.status, reason in found.reason) == (status, True)


def test_a_column_drifts_beyond_what_the_reference_did_by_itself() -> None:
    noisy = ReferenceColumn("numeric", [500, 500, 0], edges=[0.5], floors={28: 5.0})
    assert one([100, 900, 0], noisy).status == "stable"
    assert one([100, 900, 0], noisy, noise_floor=False).status == "drifted"


def finding(column: str, status: Any, weight: float, role: str = "feature") -> ColumnDrift:
    return ColumnDrift(column, role, status, "why", 0.1, 0.2, 0.0, 0.0, 1000, weight)


def test_columns_weigh_by_their_importance() -> None:
    light = summarize([finding("a", "drifted", 0.05), finding("b", "stable", 0.95)], POLICY)
    heavy = summarize([finding("a", "drifted", 0.95), finding("b", "stable", 0.05)], POLICY)
    assert (light.suspicious, heavy.suspicious) == (False, True)
    assert light.drift_share == pytest.approx(0.05)


def test_what_cannot_be_judged_kills_nothing_and_is_never_fine() -> None:
    few = summarize([finding("a", "undetermined", 0.2), finding("b", "stable", 0.8)], POLICY)
    most = summarize([finding("a", "undetermined", 0.8), finding("b", "stable", 0.2)], POLICY)
    assert few.suspicious is False and few.judged_share == pytest.approx(0.8)
    assert most.suspicious is None and "20%" in most.reason
    assert summarize([], POLICY).suspicious is None


def test_predictions_count_on_their_own() -> None:
    found = summarize(
        [finding("prediction", "drifted", 0, "prediction"), finding("a", "stable", 1.0)], POLICY
    )
    assert found.suspicious is True and "predictions" in found.reason


def test_without_importances_all_columns_weigh_the_same() -> None:
    found = compare_columns(
        {"a": EVEN, "b": EVEN},
        BinCounts(1000, {"a": [500, 500, 0], "b": [500, 500, 0]}),
        BinCounts(0, {}),
        {},
        POLICY,
    )
    assert [f.weight for f in found] == [0.5, 0.5]


def test_importances_of_columns_that_are_gone_do_not_count() -> None:
    found = compare_columns(
        {"a": EVEN}, BinCounts(1000, {"a": [500, 500, 0]}), BinCounts(0, {}), {"a": 0.2, "gone": 0.8}, POLICY
    )
    assert found[0].weight == 1.0


@pytest.mark.parametrize(
    ("now", "earlier", "expected"),
    [
        (None, [True, True], "undetermined"),
        (False, [True, True], "ok"),
        (True, [], "suspected"),
        (True, [False, False], "suspected"),
        (True, [True, False], "drifted"),
        (True, [False, True], "drifted"),
        (True, [False, False, True], "suspected"),
        (True, [None, None, True], "drifted"),
        (True, [None, None], "suspected"),
    ],
)
def test_two_of_three(now: bool | None, earlier: list[bool | None], expected: str) -> None:
    assert verdict_with_persistence(now, earlier, POLICY)[0] == expected


def test_one_of_one_needs_no_past() -> None:
    assert (
        verdict_with_persistence(True, [], POLICY.model_copy(update={"persistence": (1, 1)}))[0] == "drifted"
    )


def test_a_window_of_few_days_is_judged_by_what_few_days_do() -> None:
    shape = ReferenceColumn("numeric", [500, 500, 0], edges=[0.5], floors={1: 5.0, 28: 0.0})
    for days, status in ((1, "stable"), (28, "drifted")):
        window = BinCounts(1000, {"x": [100, 900, 0]}, days=days)
        assert compare_columns({"x": shape}, window, BinCounts(0, {}), {}, POLICY)[0].status == status
