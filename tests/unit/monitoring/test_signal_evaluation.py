"""Faults in the lake's tables, and the signal that reports each; a week without a change raises none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perennial.core import dates
from perennial.core.errors import ArtifactError
from perennial.monitoring.signal_evaluation import freshness_signal, volume_signal
from perennial.steps.monitor import monitor
from perennial.steps.score import score
from perennial.storage import delta_tables, duckdb_session
from support.monitored import FIRST, ROWS, TRUTH, World

LATER, AS_OF = "2024-01-22", "2024-01-28"


def evaluate(monitored: World, as_of: str = AS_OF) -> dict[str, Any]:
    return dict(monitor(monitored.spec, as_of=as_of)["signals"])


def test_a_calm_week_raises_nothing(monitored: World) -> None:
    monitored.publish(LATER, 7)
    monitored.label(LATER, 7, TRUTH)
    score(monitored.spec, start=LATER, end=AS_OF)
    signals = evaluate(monitored)
    # The drift reference of `World` has predictions of another kind.
    raised = {n: s["reason"] for n, s in signals.items() if s["state"] != "ok"}
    assert set(raised) == {"features", "prediction"}, raised
    assert set(signals) == {
        "features", "prediction", "volume", "freshness", "labels", "nulls", "categories", "skew",
        "performance", "calibration", "gain", "estimated", "attributions",
    }  # fmt: skip


def test_drift_that_does_no_harm_is_no_alarm(monitored: World) -> None:
    monitored.publish(LATER, 14, k="'a0'")  # the model has no use for k
    monitored.label(LATER, 14, TRUTH)
    score(monitored.spec, start=LATER, end="2024-02-04")
    results = {d: monitor(monitored.spec, as_of=d) for d in ("2024-02-03", "2024-02-04")}
    result = results["2024-02-04"]
    assert result["verdict"] == "drifted" and "k" in result["drifted"]
    assert result["signals"]["features"]["state"] == "suspected"
    assert "no harm to the model is detected" in result["signals"]["features"]["reason"]


def test_skew_is_reported_without_personal_values(monitored: World) -> None:
    """The reason names the column and the number of rows only."""
    monitored.publish(LATER, 7)
    score(monitored.spec, start=LATER, end=AS_OF)
    assert evaluate(monitored)["skew"]["state"] == "ok"
    con = duckdb_session.connect()
    duckdb_session.create_view(
        con, "log", delta_tables.table_uri("served", "toy"), None, "2024-01-25", "2024-01-25"
    )
    changed = con.sql("SELECT * REPLACE ([features[1], features[2], features[3] + 1] AS features) FROM log")
    delta_tables.replace(delta_tables.table_uri("served", "toy"), changed.to_arrow_table(), "2024-01-25")
    signals = evaluate(monitored)["skew"]
    assert signals["state"] == "bad" and signals["since"] == "2024-01-25" and signals["value"] == ROWS
    assert signals["reason"].startswith(f"who, and 1 more: {ROWS} of 1,400 logged rows differ"), signals
    assert "person" not in signals["reason"]


def test_a_partition_of_nulls_is_reported_with_its_date(monitored: World) -> None:
    monitored.publish(LATER, 6)
    monitored.publish(AS_OF, 1, x="NULL::DOUBLE")
    signals = evaluate(monitored)
    assert (
        signals["nulls"]["state"] == "bad" and "x: 100.0% nulls on 2024-01-28" in signals["nulls"]["reason"]
    )
    assert signals["categories"]["state"] == "ok"


def test_new_categories_are_reported_and_are_not_nulls(monitored: World) -> None:
    monitored.publish(LATER, 6)
    monitored.publish(AS_OF, 1, k="'z' || (i % 3)")
    signals = evaluate(monitored)
    assert signals["categories"]["state"] == "bad" and signals["categories"]["reason"].startswith("k: 100.0%")
    assert signals["nulls"]["state"] == "ok"


def test_a_partition_of_a_thousand_times_the_rows_is_bad_and_displaces_no_other(monitored: World) -> None:
    monitored.publish(LATER, 7)
    monitored.label(LATER, 7, TRUTH)
    monitored.publish("2024-01-26", 1, rows=1000 * ROWS)
    signals = evaluate(monitored)
    assert (
        signals["volume"]["state"] == "bad" and "1e+03 times more than usual" in signals["volume"]["reason"]
    )
    assert signals["performance"]["state"] == signals["freshness"]["state"] == "ok"


def test_a_missing_partition_is_bad(monitored: World) -> None:
    for start, days in ((LATER, 3), ("2024-01-26", 3)):
        monitored.publish(start, days)
    signals = evaluate(monitored)["freshness"]
    assert signals["state"] == "bad" and signals["reason"] == "no rows for 2024-01-25"


def test_late_labels_are_reported_and_performance_is_undetermined(monitored: World) -> None:
    monitored.publish(LATER, 14)
    signals = evaluate(monitored, "2024-02-04")
    assert signals["labels"]["state"] == "bad" and "no labels for 13 of" in signals["labels"]["reason"]
    assert {signals[n]["state"] for n in ("performance", "calibration", "gain")} == {"undetermined"}
    assert signals["estimated"]["state"] == "ok"  # which needs no labels
    monitored.label(LATER, 14, TRUTH)
    late = evaluate(monitored, "2024-02-04")
    assert late["labels"]["state"] == "ok" and late["performance"]["state"] == "ok"


@pytest.mark.parametrize(("rows", "state"), [(1000, "ok"), (2500, "bad"), (300, "bad"), (0, "bad")])
def test_volume_is_compared_with_baseline_partitions_of_the_weekday(rows: int, state: str) -> None:
    days = dates.dates("2024-01-01", "2024-01-28")
    counts = {d: 1000 if i % 7 < 5 else 100 for i, d in enumerate(days)}  # few at weekends
    counts["2024-01-29"] = rows
    assert volume_signal(counts, "2024-01-28", "2024-01-29", 2).state == state
    assert (
        volume_signal(counts | {"2024-02-03": 110}, "2024-01-28", "2024-02-03", 2).state == state
    )  # Monday's is still recent


def test_a_weekday_that_never_has_a_partition_is_not_expected() -> None:
    days = [d for i, d in enumerate(dates.dates("2024-01-01", "2024-01-28")) if i % 7 < 5]
    assert freshness_signal(dict.fromkeys(days, 5), "2024-01-28").state == "ok"
    assert freshness_signal(dict.fromkeys(days[:-1], 5), "2024-01-28").state == "bad"
    assert freshness_signal({}, "2024-01-28").state == "undetermined"


def test_without_labels_at_training_performance_is_undetermined(make_world: Callable[..., World]) -> None:
    monitored = make_world()
    monitored.publish(FIRST, 21)  # and no label ever came
    monitored.train()
    monitored.publish(LATER, 7)
    signals = evaluate(monitored)
    assert (
        signals["performance"]["state"] == "undetermined"
        and "held-out partitions" in signals["performance"]["reason"]
    )


def test_a_champion_without_a_baseline_is_undetermined(monitored: World) -> None:
    (monitored.folder / "artifacts" / "run-1" / "monitoring_baseline.json").unlink()
    monitored.publish(LATER, 7)
    monitored.label(LATER, 7, TRUTH)
    states = {name: signal["state"] for name, signal in evaluate(monitored).items()}
    names = ("performance", "calibration", "gain", "estimated", "attributions", "nulls", "categories")
    assert {states[name] for name in names} == {"undetermined"}
    assert states["freshness"] == states["volume"] == "ok"


def test_a_slice_that_was_added_after_training_is_undetermined(
    make_world: Callable[..., World],
) -> None:
    monitored = make_world()
    monitored.publish(FIRST, 21)
    monitored.label(FIRST, 21, TRUTH)
    monitored.train()
    monitored.publish(LATER, 7)
    monitored.spec.monitoring.slices.append("k")
    monitored.spec.monitoring.fairness.append("who")
    signals = evaluate(monitored)
    assert signals["slices"]["state"] == signals["fairness"]["state"] == "undetermined"
    assert (
        signals["slices"]["reason"].startswith("k: at training none of its values")
        and "who" in signals["fairness"]["reason"]
    )


def test_a_damaged_baseline_is_an_error(monitored: World) -> None:
    path = monitored.folder / "artifacts" / "run-1" / "monitoring_baseline.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    monitored.publish(LATER, 7)
    with pytest.raises(
        ArtifactError, match="the monitoring baseline of the champion cannot be used: format 9"
    ):
        evaluate(monitored)
