"""What scheduled runs do of what is overdue, within a bound, without harm to their own partition."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from perennial.cli import app as app_module
from perennial.core import dates
from perennial.core.errors import DataError
from perennial.lifecycle import backlog
from perennial.steps import monitor as monitor_step
from perennial.steps.monitor import monitor
from perennial.storage import ledger, manifests
from perennial.storage.ledger import Decision, LedgerKind
from support.monitored import TRUTH, World
from support.small_model import DAY, SmallModel, rows

pytestmark = pytest.mark.usefixtures("without_drift_report")

DAYS = dates.dates(DAY, dates.add_days(DAY, 11))


def land(model: SmallModel, days: list[str], feed: str = "rows", **changes: Any) -> None:
    for day in days:
        ids = [f"{day}-{i}" for i in range(5)]
        table = rows(day, n=5, **changes) if feed == "rows" else pa.table({"id": ids, "value": [2.0] * 5})
        model.land(table, day, feed)


def published(model: SmallModel, kind: str = "published") -> list[str]:
    return sorted({r["partition_date"] for r in model.table(kind)})


def test_a_backlog_is_worked_off_by_the_runs_of_later_nights(
    small_model: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(backlog.MAX_PER_RUN, "published", 4)
    monkeypatch.setitem(backlog.MAX_PER_RUN, "labelled", 3)
    land(small_model, DAYS)
    land(small_model, DAYS, "labels")
    result = small_model.run(DAYS[9], catch_up=True)
    assert result["partitions"] == [DAYS[9]] and result["rows_in"] == 5, "its own partition alone"
    assert (result["late"], result["late_labels"]) == (DAYS[:4], DAYS[:3])
    assert published(small_model) == [*DAYS[:4], DAYS[9]]
    assert published(small_model, "labels") == [*DAYS[:3], DAYS[8]]
    result = small_model.run(DAYS[10], catch_up=True)
    assert (result["late"], result["late_labels"]) == (DAYS[4:8], DAYS[3:6])
    result = small_model.run(DAYS[11], catch_up=True)
    assert (result["late"], result["late_labels"]) == ([DAYS[8]], DAYS[6:8])
    assert published(small_model) == DAYS and published(small_model, "labels") == DAYS[:-1]
    assert small_model.run(DAYS[11], catch_up=True)["status"] == "unchanged"
    assert small_model.run(DAYS[0], DAYS[-1])["status"] == "unchanged", "as if each had run in its night"


def test_a_new_model_waits_for_its_first_file(small_model: SmallModel) -> None:
    """A scheduled run for yesterday is no failure of a feed that has not begun; it publishes what landed."""
    result = small_model.run(DAYS[5], catch_up=True)
    assert (result["status"], result["partitions"]) == ("not begun", [])
    with pytest.raises(DataError, match="has not landed"):
        small_model.run(DAYS[5])  # a person asked for it
    land(small_model, DAYS[:2])
    result = small_model.run(DAYS[6], catch_up=True)
    assert (result["status"], result["late"]) == ("not begun", DAYS[:2])
    with pytest.raises(DataError, match="has not landed"):
        small_model.run(DAYS[7], catch_up=True)  # now it has begun


def test_a_new_model_whose_first_file_is_bad_fails(small_model: SmallModel) -> None:
    small_model.land(pa.table({"wrong": [1]}), DAYS[0], "rows")
    with pytest.raises(DataError):
        small_model.run(DAYS[0], catch_up=True)


def test_without_being_asked_a_run_does_its_own_partition_alone(small_model: SmallModel) -> None:
    land(small_model, DAYS[:3])
    assert "late" not in small_model.run(DAYS[2])
    assert published(small_model) == [DAYS[2]]


def test_labels_that_land_after_their_night_are_published_by_the_next(small_model: SmallModel) -> None:
    land(small_model, DAYS[:4])
    for day in DAYS[:3]:
        small_model.run(day, catch_up=True)
    version = small_model.run(DAYS[2])["version"]
    land(small_model, DAYS[:2], "labels")
    result = small_model.run(DAYS[3], catch_up=True)
    assert result["late_labels"] == DAYS[:2] and "late" not in result
    assert published(small_model, "labels") == DAYS[:2]
    assert result["version"] == (version or 0) + 1, "no rows are published again"


def test_a_partition_that_cannot_be_published_fails_no_later_night_and_is_not_tried_each_night(
    small_model: SmallModel, caplog: pytest.LogCaptureFixture
) -> None:
    land(small_model, [DAYS[0]], amount=[-1.0] * 5)
    land(small_model, DAYS[1:4])
    with caplog.at_level("WARNING", "perennial"):
        result = small_model.run(DAYS[2], catch_up=True)
    assert (
        result["late"] == [DAYS[1]] and f"Overdue partition {DAYS[0]}: the step data failed:" in caplog.text
    )
    assert "5 of 5 rows" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", "perennial"):
        assert "late" not in small_model.run(DAYS[3], catch_up=True)
    assert caplog.text == ""
    assert backlog.unpublished(small_model.spec, DAYS[3]).failed == [DAYS[0]]
    land(small_model, [DAYS[0]])
    assert small_model.run(DAYS[3], catch_up=True)["late"] == [DAYS[0]]


def test_what_is_overdue_takes_half_of_the_steps_time_at_most(
    small_model: SmallModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(small_model, DAYS[:4])
    clock = iter([0.0, 1801.0])
    monkeypatch.setattr(backlog, "monotonic", lambda: next(clock))
    with caplog.at_level("INFO", "perennial"):
        done = backlog.work_off(small_model.spec, "data", DAYS[:3], lambda _: None, started=0.0)
    assert done == [DAYS[0]]
    assert f"The step data has no time left for overdue partitions from {DAYS[1]} on." in caplog.text


def test_an_error_that_nobody_foresaw_fails_no_later_night(
    small_model: SmallModel, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(day: str) -> None:
        if day == DAYS[0]:
            raise ValueError("a value")

    with caplog.at_level("WARNING", "perennial"):
        assert backlog.work_off(small_model.spec, "score", DAYS[:2], fail, started=1e9) == [DAYS[1]]
    assert "ValueError" in caplog.text and "a value" not in caplog.text


def test_a_night_without_its_file_still_does_what_is_overdue(small_model: SmallModel) -> None:
    land(small_model, DAYS[:3])
    small_model.run(DAYS[0])
    with pytest.raises(DataError, match="has not landed"):
        small_model.run(DAYS[3], catch_up=True)
    assert published(small_model) == DAYS[:3]


def promote(day: str) -> None:
    ledger.append("toy", kind=LedgerKind.PROMOTION, decision=Decision.PROMOTED, reason="", actor="test", partition=day,
                  model_version="1")  # fmt: skip


def test_missing_verdicts_are_computed_and_what_is_overdue_is_a_signal(
    monitored: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = dates.dates("2024-01-22", "2024-01-28")
    monitored.publish(days[0], 7)
    monitored.label(days[0], 7, TRUTH)
    monitored.predict(days[0], 7)
    promote("2024-01-21")
    for day in days:
        manifests.write(manifests.Manifest("toy", "data", day, {}, {}), 0)
    for day in days[3:]:
        manifests.write(manifests.Manifest("toy", "score", day, {}, {}), 0)
    monkeypatch.setattr(backlog, "PENDING_SECONDS", -60.0)
    signal = monitor(monitored.spec, as_of=days[-1])["signals"]["backlog"]
    assert signal["state"] == "bad" and signal["value"] == 6 and signal["since"] == days[0]
    assert f"3 not scored, the first {days[0]}; 3 not monitored, the first {days[3]}" in signal["reason"]
    assert manifests.read("toy", "monitor", days[-1]).result["verdict"] != "ok"  # type: ignore[union-attr]

    decided: list[str] = []
    real = monitor_step._monitor

    def recorded(spec: Any, as_of: str, *rest: Any) -> Any:
        decided.append(as_of)
        return real(spec, as_of, *rest)

    monkeypatch.setattr(monitor_step, "_monitor", recorded)
    result = monitor(monitored.spec, as_of=days[-1], catch_up=True)
    assert decided == [days[3], days[4], days[-1]], "two at most, the earliest first"
    assert result["as_of"] == days[-1] and manifests.read("toy", "monitor", days[4]) is not None
    assert result["signals"]["backlog"]["value"] == 4
    for day in days[:3]:
        manifests.write(manifests.Manifest("toy", "score", day, {}, {}), 0)
    monitor(monitored.spec, as_of=days[-1], catch_up=True)
    monitor(monitored.spec, as_of=days[-1], catch_up=True)
    signal = monitor(monitored.spec, as_of=days[-1])["signals"]["backlog"]
    assert (signal["state"], signal["reason"]) == ("ok", "nothing that is due is undone")
    assert ledger.records("toy", LedgerKind.RETRAINING) == [], "a late verdict decides nothing"


def test_missing_lists_what_is_overdue_with_the_command_that_does_it(
    small_model: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_model.spec
    monkeypatch.setattr("perennial.spec.catalog.load_model_by_name", lambda _: spec)

    def missing(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(app_module.app, ["missing", "small", "--until", DAYS[5], *options])
        return result.exit_code, result.output

    code, output = missing()
    assert (code, output) == (0, f"Nothing that is due up to {DAYS[5]} is undone.\n")
    future = CliRunner().invoke(app_module.app, ["missing", "small", "--until", "2999-01-01"])
    assert "until 2999-01-01 is in the future" in str(future.exception)
    land(small_model, DAYS)
    land(small_model, DAYS[:2], "labels")
    small_model.run(DAYS[2])
    code, output = missing("--json")
    found = {(row["stage"], row["partitions"]): row for row in json.loads(output)}
    assert code == 1 and set(found) == {
        ("published", f"{DAYS[0]}..{DAYS[1]}"), ("published", f"{DAYS[3]}..{DAYS[5]}"), ("labelled", DAYS[0]),
    }  # fmt: skip
    commands = [row["command"] for row in found.values()]
    assert commands[-1] == f"perennial run data --model small --start {DAYS[1]}"
    assert f"perennial run data --model small --start {DAYS[0]} --end {DAYS[1]}" in missing()[1]
    for command in commands:
        words = command.split()
        small_model.run(words[words.index("--start") + 1], words[-1] if "--end" in words else None)
    assert missing() == (0, f"Nothing that is due up to {DAYS[5]} is undone.\n")
