"""What is due and not done is found by looking at the landing area, the manifests and the ledger."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.core import dates
from perennial.core.errors import DataError, DataReplacedError, StorageError
from perennial.ingestion.run import label_inputs, row_inputs
from perennial.lifecycle import backlog
from perennial.spec.model_spec import ModelSpec
from perennial.storage import landing, ledger, manifests, object_store
from perennial.storage.ledger import Decision, LedgerKind
from support import toys

DAYS = dates.dates(toys.FIRST, dates.add_days(toys.FIRST, 9))


@pytest.fixture
def spec(empty_home: Path, tmp_path: Path) -> ModelSpec:
    return toys.model(tmp_path / "models", "toy", label={"arrives_after": "2 days"})


def land(spec: ModelSpec, days: list[str], feed: str = "rows") -> None:
    template = spec.data.source if feed == "rows" else spec.label.source or ""
    for day in days:
        path = Path(landing.source_uri(template, day))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(day)


def finish(spec: ModelSpec, step: str, days: list[str], inputs: dict[str, Any] | None = None) -> None:
    for day in days:
        manifests.write(manifests.Manifest(spec.name, step, day, inputs or {}, {}), 0)


def promote(spec: ModelSpec, day: str, version: str = "1") -> None:
    ledger.append(
        spec.name, kind=LedgerKind.PROMOTION, decision=Decision.PROMOTED, reason="better", actor="test", partition=day,
        model_version=version,
    )  # fmt: skip


def test_files_that_landed_while_nothing_ran_are_due(spec: ModelSpec) -> None:
    assert backlog.unpublished(spec, DAYS[-1]).overdue == []
    land(spec, [dates.add_days(DAYS[0], -1), *DAYS])
    finish(spec, "data", [*DAYS[:3], DAYS[5]])
    of_rows = backlog.unpublished(spec, DAYS[8])
    assert of_rows.overdue == [DAYS[3], DAYS[4], *DAYS[6:9]], (
        "not before the schedule, and not after the date"
    )
    assert of_rows.next_batch == of_rows.overdue and of_rows.failed == []


def test_only_partitions_with_a_scheduled_run_are_due(spec: ModelSpec, tmp_path: Path) -> None:
    """A weekly run on Monday is for Sunday's partition."""
    land(spec, DAYS)
    weekly = toys.model(tmp_path / "models", "toy", schedule={"data": "0 2 * * 1", "end": date(2024, 1, 31)})
    assert backlog.unpublished(weekly, DAYS[-1]).overdue == ["2024-01-07"]
    ended = toys.model(tmp_path / "models", "toy", schedule={"end": date.fromisoformat(DAYS[1])})
    assert backlog.unpublished(ended, DAYS[-1]).overdue == DAYS[:2]


def test_partitions_that_their_table_no_longer_holds_are_due(spec: ModelSpec) -> None:
    """As in a new generation of the tables."""
    land(spec, DAYS[:4])
    land(spec, DAYS[:4], "labels")
    for step in ("data", "labels"):
        finish(spec, step, DAYS[:1])  # all of its rows are in quarantine
        for day in DAYS[1:4]:
            manifests.write(manifests.Manifest(spec.name, step, day, {}, {}, rows_in=5, rows_out=5), 0)
    toys.publish(spec, DAYS[1], 1)
    assert backlog.unpublished(spec, DAYS[-1]).overdue == DAYS[2:4]
    assert backlog.unlabelled(spec, DAYS[-1]).overdue == DAYS[2:4]


def test_labels_are_due_when_their_night_has_passed_however_late_they_land(
    spec: ModelSpec, tmp_path: Path
) -> None:
    land(spec, DAYS, "labels")
    finish(spec, "labels", DAYS[:4])
    assert backlog.unlabelled(spec, DAYS[7]).overdue == DAYS[4:6]
    # they now arrive a day after the rows: those in between were never fetched
    sooner = toys.model(tmp_path / "models", "toy", label={"arrives_after": "1 day"})
    assert backlog.unlabelled(sooner, DAYS[7]).overdue == DAYS[4:7]
    without = toys.model(tmp_path / "models", "toy", label={"source": None, "columns": {}, "expression": "z",
                                                            "arrives_after": "0 days"})  # fmt: skip
    assert backlog.unlabelled(without, DAYS[7]).overdue == []


def test_what_failed_is_due_again_when_its_file_or_the_spec_changes(spec: ModelSpec, tmp_path: Path) -> None:
    land(spec, DAYS[:3])

    def fail(day: str, error: Any) -> None:
        stat = object_store.stat(landing.source_uri(spec.data.source, day))
        backlog.record_failure(spec, "data", day, row_inputs(spec), stat, error)

    fail(DAYS[0], DataError("bad rows", "correct them"))
    fail(DAYS[1], StorageError("no room", "make room"))
    of_rows = backlog.unpublished(spec, DAYS[-1])
    assert (of_rows.overdue, of_rows.failed) == (DAYS[1:3], DAYS[:1]), "a full disk may have room again"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backlog.MAX_PER_RUN, "published", 1)
        assert backlog.unpublished(spec, DAYS[-1]).next_batch == [DAYS[2]], "what never failed comes first"
    changed = toys.model(tmp_path / "models", "toy", data={"quarantine_limit": 0.5})
    assert backlog.unpublished(changed, DAYS[-1]).failed == []
    land(spec, DAYS[:1])
    assert backlog.unpublished(spec, DAYS[-1]).failed == []
    fail(DAYS[2], DataReplacedError("it was being delivered", "wait"))
    assert backlog.unpublished(spec, DAYS[-1]).failed == [], "the feed delivers it"
    assert label_inputs(spec) != row_inputs(spec)


def test_more_hours_than_days_are_done_at_once(tmp_path: Path, empty_home: Path) -> None:
    hourly = toys.model(
        tmp_path / "models", "toy", data={"source": "{landing}/toy/{date}/{hour}.parquet", "every": "hour"},
        label={"source": "{landing}/{date}/{hour}.parquet"}, schedule={"data": "10 * * * *", "monitor": "20 * * * *"},
    )  # fmt: skip
    land(hourly, hourly.cadence.keys(f"{DAYS[0]}T00", f"{DAYS[2]}T01"))
    of_rows = backlog.unpublished(hourly, f"{DAYS[-1]}T00")
    assert (len(of_rows.overdue), of_rows.next_batch) == (50, of_rows.overdue[:42])


def test_every_gap_since_the_first_promotion_is_to_be_scored(spec: ModelSpec) -> None:
    finish(spec, "data", DAYS)
    assert backlog.unscored(spec, DAYS[-1]).overdue == [], "there was never a champion"
    promote(spec, DAYS[2])
    promote(spec, DAYS[6], "2")
    finish(spec, "score", [DAYS[5], DAYS[9]], {"rows": ""})
    assert backlog.unscored(spec, DAYS[8]).overdue == [DAYS[3], DAYS[4], *DAYS[6:9]]
    assert backlog.unscored(spec, DAYS[8], published_before=0).overdue == [], "their own runs may be queued"
    backlog.record_champion_failure(spec, "score", DAYS[3], DataError("an unseen category", "train again"))
    assert backlog.unscored(spec, DAYS[8]).failed == [DAYS[3]]
    finish(spec, "data", DAYS[3:4])  # published again
    assert backlog.unscored(spec, DAYS[8]).failed == []
    backlog.record_champion_failure(spec, "score", DAYS[3], DataError("an unseen category", "train again"))
    promote(spec, DAYS[7], "3")
    assert backlog.unscored(spec, DAYS[8]).failed == [], "another champion may know it"


def test_a_partition_that_was_published_again_with_other_rows_is_to_be_scored_again(spec: ModelSpec) -> None:
    promote(spec, dates.add_days(DAYS[0], -1))
    finish(spec, "score", DAYS[:2], {"rows": ""})
    finish(spec, "score", DAYS[2:3], {"rows": "other"})
    finish(spec, "data", DAYS[:3])
    assert backlog.unscored(spec, DAYS[-1]).overdue == [DAYS[2]]


def test_verdicts_are_due_where_the_schedule_has_them(spec: ModelSpec, tmp_path: Path) -> None:
    promote(spec, DAYS[1])
    finish(spec, "score", [DAYS[0], *DAYS[2:6]])
    finish(spec, "monitor", [DAYS[3]])
    assert backlog.unmonitored(spec, DAYS[-1]).overdue == [DAYS[2], DAYS[4], DAYS[5]]
    weekly = toys.model(
        tmp_path / "models", "toy", schedule={"monitor": "0 6 * * 5"}
    )  # Thursday's, on Friday
    assert backlog.unmonitored(weekly, DAYS[-1]).overdue == []
    finish(spec, "score", DAYS)
    assert backlog.unmonitored(weekly, dates.add_days(DAYS[-1], 30)).overdue == []
    tuesdays = toys.model(tmp_path / "models", "toy", schedule={"monitor": "0 6 * * 3"})
    assert backlog.unmonitored(tuesdays, DAYS[-1]).overdue == ["2024-01-09"]


def test_a_lake_of_a_thousand_nights_is_listed_not_read(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = dates.dates(toys.FIRST, dates.add_days(toys.FIRST, 999))
    for feed in ("rows", "labels"):
        land(spec, long, feed)
    for step in ("data", "labels", "score", "monitor"):
        folder = Path(manifests.uri(spec.name, step, "x")).parent
        folder.mkdir(parents=True)
        for day in long:
            (folder / f"{day}.json").write_text("not read")
    toys.publish(spec, days=len(long), n=1)
    promote(spec, toys.FIRST)
    calls = {"read_bytes": 0, "list_files": 0, "stat": 0}

    def count(name: str) -> None:
        real = getattr(object_store, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(object_store, name, counted)

    for name in calls:
        count(name)
    last = dates.add_days(long[-1], 1)
    assert not any(b.overdue or b.failed for b in backlog.of_all_stages(spec, last).values())
    assert calls["read_bytes"] == calls["stat"] == 0 and calls["list_files"] <= 9


@settings(max_examples=60)
@given(
    template=st.lists(
        st.sampled_from(["{date}", "{year}", "{month}", "{day}", "/", "a", "-", "."]), min_size=1, max_size=8
    ).map("".join),
    days=st.lists(st.dates(date(1900, 1, 1), date(2200, 1, 1)), max_size=4, unique=True),
)
def test_landed_files_are_found_by_the_date_in_their_path(template: str, days: list[date]) -> None:
    import tempfile

    parts = template.split("/")
    if any(part in ("", ".", "..") or part.startswith((".", "{landing}")) for part in parts):
        return
    if "{date}" not in template and not {"{year}", "{month}", "{day}"} <= set(parse(template)):
        return
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERENNIAL_LANDING", folder)
        source = f"{{landing}}/feed/{template}.csv"
        texts = sorted(day.isoformat() for day in days)
        for day in texts:
            path = Path(landing.source_uri(source, day))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(day))
        (Path(folder) / "other.csv").write_text("")
        assert list(landing.list_landed(source)) == texts


def parse(template: str) -> list[str]:
    import re

    return re.findall(r"\{[a-z]+\}", template)
