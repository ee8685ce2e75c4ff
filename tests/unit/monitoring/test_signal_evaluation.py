"""Faults in the lake's tables, and the signal that reports each; a week without a change raises none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pytest

from perennial.core import dates
from perennial.core.errors import ArtifactError
from perennial.core.partitions import Cadence
from perennial.monitoring import retraining_gain, signal_evaluation
from perennial.monitoring._loss_estimation import LossEstimator
from perennial.monitoring.baseline import MonitoringBaseline
from perennial.monitoring.partition_sample import PartitionSample
from perennial.monitoring.signal_evaluation import (
    freshness_signal,
    label_signal,
    volume_signal,
    with_group_coverage,
)
from perennial.monitoring.signals import Signal
from perennial.spec import alerts
from perennial.steps.monitor import monitor
from perennial.steps.score import score
from perennial.storage import delta_tables, duckdb_session
from support.monitored import FIRST, ROWS, TRUTH, World

pytestmark = pytest.mark.usefixtures("without_drift_report")

LATER, AS_OF = "2024-01-22", "2024-01-28"


def evaluate(monitored: World, as_of: str = AS_OF) -> dict[str, Any]:
    return dict(monitor(monitored.spec, as_of=as_of)["signals"])


def test_channels_and_mutes_can_name_every_signal(monitored: World) -> None:
    monitored.publish(LATER, 7)
    spec = monitored.spec.model_copy(
        update={
            "monitoring": monitored.spec.monitoring.model_copy(update={"slices": ["k"], "fairness": ["k"]})
        }
    )
    evaluated = set(monitor(spec, as_of=AS_OF)["signals"])
    of_runs = {s for s in alerts.SIGNALS if s.startswith(("failure:", "deadline:"))}
    assert evaluated == set(alerts.SIGNALS) - of_runs - {"integrity", "reproduction", "rollback_target"}


def test_a_calm_week_raises_nothing(monitored: World) -> None:
    monitored.publish(LATER, 7)
    monitored.label(LATER, 7, TRUTH)
    score(monitored.spec, start=LATER, end=AS_OF)
    signals = evaluate(monitored)
    # The drift reference of `World` has predictions of another kind.
    raised = {n: s["reason"] for n, s in signals.items() if s["state"] != "ok"}
    assert set(raised) == {"features", "prediction"}, raised
    assert set(signals) == {
        "features", "prediction", "volume", "freshness", "labels", "nulls", "categories", "skew", "champion",
        "backlog",
        "performance", "calibration", "gain", "estimated", "attributions",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("overdue", "state"),
    [
        ({}, "ok"),
        ({"scored": ["2024-01-01"]}, "suspected"),
        ({"scored": ["2024-01-01", "2024-01-02"]}, "bad"),
        ({"monitored": ["2024-01-01", "2024-01-02", "2024-01-03"]}, "suspected"),
    ],
)
def test_verdicts_that_were_skipped_do_not_make_a_model_bad(
    overdue: dict[str, list[str]], state: str
) -> None:
    assert signal_evaluation.backlog_signal(overdue).state == state


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


def test_labels_with_other_keys_and_labels_of_a_part_of_the_rows_are_bad(monitored: World) -> None:
    monitored.publish(LATER, 7)
    monitored.label(LATER, 7, TRUTH)
    assert evaluate(monitored)["labels"]["state"] == "ok"
    uri = delta_tables.table_uri("labels", "toy")
    con = duckdb_session.connect()

    def relabel(day: str, query: str) -> dict[str, Any]:
        duckdb_session.create_view(con, "l", uri, None, day, day)
        before = con.sql("SELECT * FROM l").to_arrow_table()
        delta_tables.replace(uri, con.sql(query).to_arrow_table(), day)
        signal = evaluate(monitored)["labels"]
        delta_tables.replace(uri, before, day)
        return dict(signal)

    other_keys = "CASE WHEN regexp_matches(id, '-1[0-9]*$') THEN 'x' || id ELSE id END"  # of 111 labels
    wrong = relabel("2024-01-25", f"SELECT * REPLACE ({other_keys} AS id) FROM l")
    assert wrong["state"] == "bad" and wrong["since"] == "2024-01-25" and wrong["value"] == 111 / ROWS
    assert (
        "55.5% of the labels belong to no published row on 2024-01-25, the limit is 5.0%" in wrong["reason"]
    )
    some = relabel("2024-01-24", "SELECT * FROM l WHERE regexp_matches(id, '-1[0-9]*$')")
    assert some["state"] == "bad" and "44.5% of the rows have no label on 2024-01-24" in some["reason"]
    few = relabel("2024-01-24", "SELECT * FROM l WHERE id NOT LIKE '%-19'")
    assert few["state"] == "ok", "a share below quarantine_limit is harmless"
    more = "SELECT * FROM l UNION ALL SELECT * REPLACE (id || 'x' AS id) FROM l"
    assert relabel("2024-01-24", more)["state"] == "bad"


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


def test_an_hour_is_expected_before_every_hour_of_the_week_has_occurred() -> None:
    hourly = Cadence("hour")
    hours = hourly.keys("2024-01-01T08", "2024-01-03T17")
    missing = {"2024-01-03T10", "2024-01-03T11"}  # the first Wednesday
    signal = freshness_signal({h: 5 for h in hours if h not in missing}, hours[-1], hourly)
    assert (signal.state, signal.reason) == ("bad", "no rows for 2024-01-03T10, 2024-01-03T11")
    # a shop that is open by day, on weekdays: the nights are not expected, and after two weeks nor are the weekends
    weeks = hourly.keys("2024-01-01T08", "2024-01-19T17")
    opened = [h for h in weeks if "08" <= h[-2:] <= "17" and date.fromisoformat(h[:10]).weekday() < 5]
    signal = freshness_signal(dict.fromkeys(opened, 5), weeks[-1], hourly)
    assert (signal.state, signal.reason) == ("ok", "all of the 50 latest partitions were published")


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


NO_BASELINE = MonitoringBaseline(
    LossEstimator("multiclass", "log_loss"), {}, np.zeros(1), {}, {}, {}, None, None, 0.0, {}
)


def labelled_sample(y: Any, days: int = 4, classes: int = 2) -> PartitionSample:
    """Partitions of equally many rows, with given labels."""
    y = np.asarray(y, np.float64)
    predicted = np.full((len(y), classes) if classes else len(y), 0.5)
    index = np.repeat(np.arange(days), len(y) // days)
    dates = tuple(f"2024-01-0{i + 1}" for i in range(days))
    return PartitionSample(dates, index, np.zeros((len(y), 1)), predicted, predicted, y)


@pytest.mark.parametrize(
    ("unseen", "state", "since"), [(0, "ok", ""), (1, "suspected", "2024-01-03"), (2, "bad", "2024-01-03")]
)
def test_labels_of_a_class_unseen_at_training_are_counted(unseen: int, state: str, since: str) -> None:
    y = np.zeros(400)
    y[200 : 200 + unseen] = -1
    signal = label_signal(labelled_sample(y), NO_BASELINE, "2024-01-04", 0.0)
    assert (signal.state, signal.since) == (state, since)
    assert (f"{unseen} of 400 sampled labels have a class unseen at training" in signal.reason) == bool(
        unseen
    )
    assert "labels arrived for 400 of 400 sampled rows of 4 partitions" in signal.reason


def test_a_class_unseen_at_training_is_a_loss_and_a_gain() -> None:
    """A third of the labels has a new class from the fifth of ten days on, where the feature says so."""
    random = np.random.default_rng(0)
    index = np.repeat(np.arange(10), 600)
    x = random.random((6000, 1)).astype(np.float32)
    y = random.integers(0, 2, 6000).astype(np.float64)
    margin = np.zeros((6000, 2), np.float32)
    dates = tuple(f"2024-01-{i + 1:02}" for i in range(10))

    def gains(y: np.ndarray) -> np.ndarray:
        sample = PartitionSample(dates, index, x, margin, np.full((6000, 2), 0.5), y)
        assert len(sample.labelled.y) == 6000
        return retraining_gain.gain_by_partition("multiclass", "log_loss", "multi:softprob", sample, 2)

    calm = gains(y)
    assert np.nanmax(np.abs(calm)) < 0.05
    y[(x[:, 0] > 2 / 3) & (index >= 5)] = -1
    sample = PartitionSample(dates, index, x, margin, np.full((6000, 2), 0.5), y)
    loss = sample.partition_means(sample.losses("multiclass", "log_loss"))
    share = sample.partition_means((y < 0).astype(float))
    expected = share * -np.log(1e-7) + (1 - share) * np.log(2)
    assert loss == pytest.approx(expected, rel=1e-6)
    new = gains(y)
    assert new[:5] == pytest.approx(calm[:5], nan_ok=True)
    assert abs(new[5]) < 0.05, "on its first day nothing is known of it"
    # What is left is at most the loss of a model that knows the shares of the three classes.
    assert (new[6:] > expected[6:] - np.log(3) - 0.3).all()


def test_slices_say_what_share_of_the_rows_they_compare() -> None:
    sample = replace(
        labelled_sample(np.zeros(400)), groupings={"shop": np.array(["a", "b", "new", "new"] * 100, object)}
    )
    ok = Signal("ok", "the worst slice")
    compared = with_group_coverage(ok, sample, ["shop"], {"shop": ["a", "b"]}, 0.5)
    assert compared.state == "ok" and "shop: 50.0% of the rows have one of the 2 values" in compared.reason
    too_few = with_group_coverage(ok, sample, ["shop"], {"shop": ["a"]}, 0.5)
    assert too_few.state == "undetermined" and "25.0% of the rows" in too_few.reason
    bad = with_group_coverage(replace(ok, state="bad"), sample, ["shop"], {"shop": ["a"]}, 0.5)
    assert bad.state == "bad"
