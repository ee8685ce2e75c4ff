"""Faults planted in the lake's tables, and the signal that names each; a calm week raises none."""

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


def look(world: World, as_of: str = AS_OF) -> dict[str, Any]:
    found: dict[str, Any] = monitor(world.spec, as_of=as_of)["signals"]
    return found


def test_a_calm_week_raises_nothing(world: World) -> None:
    world.publish(LATER, 7)
    world.label(LATER, 7, TRUTH)
    score(world.spec, start=LATER, end=AS_OF)
    found = look(world)
    # The drift reference of this world holds predictions of another kind.
    raised = {n: s["reason"] for n, s in found.items() if s["state"] != "ok"}
    assert set(raised) == {"features", "prediction"}, raised
    assert set(found) == {
        "features", "prediction", "volume", "freshness", "labels", "nulls", "categories", "skew",
        "performance", "calibration", "gain", "estimated", "attributions",
    }  # fmt: skip


def test_drift_that_does_no_harm_is_no_alarm(world: World) -> None:
    world.publish(LATER, 14, k="'a0'")  # the model has no use for k
    world.label(LATER, 14, TRUTH)
    score(world.spec, start=LATER, end="2024-02-04")
    states = {d: monitor(world.spec, as_of=d) for d in ("2024-02-03", "2024-02-04")}
    found = states["2024-02-04"]
    assert found["verdict"] == "drifted" and "k" in found["drifted"]
    assert found["signals"]["features"]["state"] == "suspected"
    assert "no harm to the model is seen" in found["signals"]["features"]["reason"]


def test_features_that_were_served_otherwise_are_skew_without_a_value_of_them_told(world: World) -> None:
    """The reference has this column's values as personal data."""
    world.publish(LATER, 7)
    score(world.spec, start=LATER, end=AS_OF)
    assert look(world)["skew"]["state"] == "ok"
    con = duckdb_session.connect()
    duckdb_session.create_view(
        con, "log", delta_tables.table_uri("served", "toy"), None, "2024-01-25", "2024-01-25"
    )
    given = con.sql("SELECT * REPLACE ([features[1], features[2], features[3] + 1] AS features) FROM log")
    delta_tables.replace(delta_tables.table_uri("served", "toy"), given.to_arrow_table(), "2024-01-25")
    found = look(world)["skew"]
    assert found["state"] == "bad" and found["since"] == "2024-01-25" and found["value"] == ROWS
    assert found["reason"].startswith(f"who, and 1 more: {ROWS} of 1,400 logged rows differ"), found
    assert "person" not in found["reason"]


def test_a_night_of_nulls_is_found_on_that_night(world: World) -> None:
    world.publish(LATER, 6)
    world.publish(AS_OF, 1, x="NULL::DOUBLE")
    found = look(world)
    assert (
        found["nulls"]["state"] == "bad"
        and "x: 100.0% empty values on 2024-01-28" in found["nulls"]["reason"]
    )
    assert found["categories"]["state"] == "ok"


def test_a_night_of_new_categories_is_found_and_is_not_a_night_of_nulls(world: World) -> None:
    world.publish(LATER, 6)
    world.publish(AS_OF, 1, k="'z' || (i % 3)")
    found = look(world)
    assert found["categories"]["state"] == "bad" and found["categories"]["reason"].startswith("k: 100.0%")
    assert found["nulls"]["state"] == "ok"


def test_a_thousandfold_night_is_bad_and_drives_no_other_night_out(world: World) -> None:
    world.publish(LATER, 7)
    world.label(LATER, 7, TRUTH)
    world.publish("2024-01-26", 1, rows=1000 * ROWS)
    found = look(world)
    assert found["volume"]["state"] == "bad" and "1e+03 times more than usual" in found["volume"]["reason"]
    assert found["performance"]["state"] == found["freshness"]["state"] == "ok"


def test_a_missing_night_is_bad(world: World) -> None:
    for start, days in ((LATER, 3), ("2024-01-26", 3)):
        world.publish(start, days)
    found = look(world)["freshness"]
    assert found["state"] == "bad" and found["reason"] == "no rows for 2024-01-25"


def test_labels_a_week_late_are_told_and_performance_is_not_called_fine(world: World) -> None:
    world.publish(LATER, 14)
    found = look(world, "2024-02-04")
    assert found["labels"]["state"] == "bad" and "no label for 13 of" in found["labels"]["reason"]
    assert {found[n]["state"] for n in ("performance", "calibration", "gain")} == {"undetermined"}
    assert found["estimated"]["state"] == "ok"  # which needs no labels
    world.label(LATER, 14, TRUTH)
    late = look(world, "2024-02-04")
    assert late["labels"]["state"] == "ok" and late["performance"]["state"] == "ok"


@pytest.mark.parametrize(("rows", "state"), [(1000, "ok"), (2500, "bad"), (300, "bad"), (0, "bad")])
def test_volume_is_judged_against_quiet_nights_of_the_weekday(rows: int, state: str) -> None:
    days = dates.dates("2024-01-01", "2024-01-28")
    held = {d: 1000 if i % 7 < 5 else 100 for i, d in enumerate(days)}  # few at weekends
    held["2024-01-29"] = rows
    assert volume_signal(held, "2024-01-28", "2024-01-29", 2).state == state
    assert (
        volume_signal(held | {"2024-02-03": 110}, "2024-01-28", "2024-02-03", 2).state == state
    )  # Monday's is recent still


def test_a_weekday_that_never_comes_is_not_waited_for() -> None:
    days = [d for i, d in enumerate(dates.dates("2024-01-01", "2024-01-28")) if i % 7 < 5]
    assert freshness_signal(dict.fromkeys(days, 5), "2024-01-28").state == "ok"
    assert freshness_signal(dict.fromkeys(days[:-1], 5), "2024-01-28").state == "bad"
    assert freshness_signal({}, "2024-01-28").state == "undetermined"


def test_what_cannot_be_read_is_undetermined(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.publish(FIRST, 21)  # and no label ever came
    world.train()
    world.publish(LATER, 7)
    found = look(world)
    assert (
        found["performance"]["state"] == "undetermined"
        and "held-out nights" in found["performance"]["reason"]
    )


def test_a_champion_without_anything_to_compare_with_is_not_called_well(world: World) -> None:
    (world.folder / "artifacts" / "run-1" / "watch.json").unlink()  # as one of an earlier release
    world.publish(LATER, 7)
    world.label(LATER, 7, TRUTH)
    states = {name: signal["state"] for name, signal in look(world).items()}
    followed = ("performance", "calibration", "gain", "estimated", "attributions", "nulls", "categories")
    assert {states[name] for name in followed} == {"undetermined"}
    assert states["freshness"] == states["volume"] == "ok"


def test_a_slice_that_was_not_asked_for_at_training_is_not_called_well(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    world.publish(FIRST, 21)
    world.label(FIRST, 21, TRUTH)
    world.train()
    world.publish(LATER, 7)
    world.spec.monitoring.slices.append("k")
    world.spec.monitoring.fairness.append("who")
    found = look(world)
    assert found["slices"]["state"] == found["fairness"]["state"] == "undetermined"
    assert (
        found["slices"]["reason"].startswith("k: none of its values") and "who" in found["fairness"]["reason"]
    )


def test_a_damaged_watch_is_an_error_and_not_silence(world: World) -> None:
    place = world.folder / "artifacts" / "run-1" / "watch.json"
    place.write_text(place.read_text().replace('"format": 1', '"format": 9'))
    world.publish(LATER, 7)
    with pytest.raises(ArtifactError, match="what the champion is watched by cannot be used: format 9"):
        look(world)
