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


def compare_one(counts: list[int] | None, reference: ReferenceColumn = EVEN, **policy: Any) -> ColumnDrift:
    rows = sum(counts) if counts is not None else 1000
    changed = POLICY.model_copy(update=policy)
    return compare_columns(
        {"x": reference}, BinCounts(rows, {"x": counts}), BinCounts(0, {}), {"x": 1.0}, changed
    )[0]


@pytest.mark.parametrize(
    ("counts", "reference", "status", "reason"),
    [
        ([500, 500, 0], EVEN, "stable", ""),
        ([100, 900, 0], EVEN, "drifted", "PSI"),
        ([45, 45, 0], EVEN, "undetermined", "90 rows in the window"),
        (None, EVEN, "undetermined", "does not have this column"),
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
def test_status_of_a_column(
    counts: list[int] | None, reference: ReferenceColumn, status: str, reason: str
) -> None:
    if reference.edges == [] and counts is not None:
        counts = [sum(counts), 0]
    drift = compare_one(counts, reference)
    assert (drift.status, reason in drift.reason) == (status, True)


def test_a_column_drifts_only_above_its_noise_floor() -> None:
    noisy = ReferenceColumn("numeric", [500, 500, 0], edges=[0.5], noise_floors={28: 5.0})
    assert compare_one([100, 900, 0], noisy).status == "stable"
    assert compare_one([100, 900, 0], noisy, noise_floor=False).status == "drifted"


def column_drift(column: str, status: Any, importance: float, role: str = "feature") -> ColumnDrift:
    return ColumnDrift(column, role, status, "why", 0.1, 0.2, 0.0, 0.0, 1000, importance)


def test_columns_are_weighted_by_their_importance() -> None:
    low = summarize([column_drift("a", "drifted", 0.05), column_drift("b", "stable", 0.95)], POLICY)
    high = summarize([column_drift("a", "drifted", 0.95), column_drift("b", "stable", 0.05)], POLICY)
    assert (low.suspicious, high.suspicious) == (False, True)
    assert low.drift_share == pytest.approx(0.05)


def test_undetermined_columns_do_not_count_as_stable() -> None:
    few = summarize([column_drift("a", "undetermined", 0.2), column_drift("b", "stable", 0.8)], POLICY)
    most = summarize([column_drift("a", "undetermined", 0.8), column_drift("b", "stable", 0.2)], POLICY)
    assert few.suspicious is False and few.evaluated_share == pytest.approx(0.8)
    assert most.suspicious is None and "20%" in most.reason
    assert summarize([], POLICY).suspicious is None


def test_drifted_predictions_alone_are_suspicious() -> None:
    drift = summarize(
        [column_drift("prediction", "drifted", 0, "prediction"), column_drift("a", "stable", 1.0)], POLICY
    )
    assert drift.suspicious is True and "predictions" in drift.reason


def test_without_importances_all_columns_weigh_the_same() -> None:
    drift = compare_columns(
        {"a": EVEN, "b": EVEN},
        BinCounts(1000, {"a": [500, 500, 0], "b": [500, 500, 0]}),
        BinCounts(0, {}),
        {},
        POLICY,
    )
    assert [c.importance for c in drift] == [0.5, 0.5]


def test_importances_of_columns_that_are_gone_do_not_count() -> None:
    drift = compare_columns(
        {"a": EVEN}, BinCounts(1000, {"a": [500, 500, 0]}), BinCounts(0, {}), {"a": 0.2, "gone": 0.8}, POLICY
    )
    assert drift[0].importance == 1.0


@pytest.mark.parametrize(
    ("suspicious", "previous", "expected"),
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
def test_drift_must_persist_in_two_of_three_windows(
    suspicious: bool | None, previous: list[bool | None], expected: str
) -> None:
    assert verdict_with_persistence(suspicious, previous, POLICY)[0] == expected


def test_one_of_one_needs_no_earlier_window() -> None:
    assert (
        verdict_with_persistence(True, [], POLICY.model_copy(update={"persistence": (1, 1)}))[0] == "drifted"
    )


def test_a_short_window_gets_the_noise_floor_of_its_length() -> None:
    reference = ReferenceColumn("numeric", [500, 500, 0], edges=[0.5], noise_floors={1: 5.0, 28: 0.0})
    for days, status in ((1, "stable"), (28, "drifted")):
        window = BinCounts(1000, {"x": [100, 900, 0]}, days=days)
        assert compare_columns({"x": reference}, window, BinCounts(0, {}), {}, POLICY)[0].status == status
