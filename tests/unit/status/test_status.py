"""The status record: what it says, that it follows the lake, and that no step fails with it."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.core.partitions import DAILY
from perennial.spec.model_spec import ModelSpec
from perennial.status import history, partition_states, record, refresh
from perennial.steps import dispatch
from perennial.storage import ledger, manifests
from perennial.storage.ledger import Decision, LedgerKind
from perennial.storage.manifests import Manifest
from support.console import world as console_world
from support.console.world import FIRST, KEYS


@pytest.fixture
def spec(empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path / "models"))
    return console_world.make_spec(tmp_path / "models", "toy")


def write(spec: ModelSpec, step: str, key: str, seconds: float = 1.0, **fields: Any) -> None:
    manifests.write(Manifest(spec.name, step, key, {}, {}, **fields), time.monotonic() - seconds)


def test_a_record_says_what_the_lake_has(spec: ModelSpec) -> None:
    write(spec, "data", KEYS[0], rows_in=10, rows_out=7, quarantined=3)
    write(spec, "data", KEYS[1], rows_in=10, rows_out=10)
    console_world.promote(spec, "1", KEYS[0], actor="anna")
    console_world.score(spec, KEYS[1], "1")
    console_world.monitor(spec, KEYS[1], "1", verdict="suspected", drift_share=0.12)
    refresh.refresh(spec)
    status = record.read("toy")
    assert status is not None and status.champion is not None and status.verdict is not None
    assert (status.owner, status.tags, status.partitions) == ("tests", ["pricing"], 2)
    done = {"published": KEYS[1], "scored": KEYS[1], "monitored": KEYS[1], "trained": KEYS[0]}
    assert status.last == done
    assert status.quarantined == {KEYS[0]: 3}
    assert (status.champion.version, status.champion.actor, status.champion.change) == (
        "1",
        "anna",
        "promoted",
    )
    assert (status.verdict.verdict, status.verdict.as_of) == ("suspected", KEYS[1])
    assert status.performance == [(KEYS[1], 0.33)] and status.drift == [(KEYS[1], 0.12)]
    assert status.due() == KEYS[-1]


def test_a_step_writes_the_record_and_so_does_one_that_fails(spec: ModelSpec) -> None:
    with pytest.raises(Exception, match="there is no verdict"):
        dispatch.run("decide", spec, as_of=KEYS[0], actor="test", backfill=False)
    assert record.read("toy") is not None


def test_no_step_fails_with_its_record(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("value of a row")

    write(spec, "monitor", KEYS[0])
    monkeypatch.setattr(record, "write", fail)
    with caplog.at_level(logging.WARNING, "perennial"):
        refresh.refresh_quietly(spec)
    assert "The status of toy was not written" in caplog.text and "value of a row" not in caplog.text


def test_only_new_manifests_are_read_and_a_changed_one_again(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in KEYS:
        write(spec, "data", key, rows_in=1, rows_out=1)
    refresh.refresh(spec)
    read: list[str] = []
    original = manifests.read
    monkeypatch.setattr(manifests, "read", lambda m, s, key: read.append(key) or original(m, s, key))  # type: ignore[func-returns-value]
    refresh.refresh(spec)
    assert read == []
    write(spec, "data", KEYS[2], rows_in=22, rows_out=22)
    Path(manifests.uri("toy", "data", KEYS[3])).unlink()
    refresh.refresh(spec)
    assert read == [KEYS[2]]
    entries = history.load("toy")[0].of("data")
    assert entries[KEYS[2]].rows_out == 22 and KEYS[3] not in entries
    refresh.refresh(spec, rebuild=True)
    assert sorted(read[1:]) == [k for k in KEYS if k != KEYS[3]]


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"format": 1}', '{"format": 0}', '{"format": 1, "steps": 3}']
)
def test_damaged_files_are_written_anew(spec: ModelSpec, damage: str) -> None:
    write(spec, "data", FIRST, rows_in=1, rows_out=1)
    refresh.refresh(spec)
    for uri in (record.uri("toy"), history.uri("toy")):
        Path(uri).write_text(damage)
    assert record.read("toy") is None
    assert refresh.refresh(spec).partitions == 1
    assert record.read("toy") is not None


def test_a_manifest_that_was_changed_is_named_and_hides_no_other(spec: ModelSpec) -> None:
    for key in KEYS[:2]:
        write(spec, "data", key, rows_in=1, rows_out=1)
    file = Path(manifests.uri("toy", "data", KEYS[0]))
    file.write_text(file.read_text().replace('"rows_in": 1', '"rows_in": 2'))
    status = refresh.refresh(spec)
    assert status.partitions == 1
    assert "was changed after it was written" in status.unreadable[f"data {KEYS[0]}"]


def test_a_range_costs_as_much_as_its_run_and_each_run_counts(spec: ModelSpec) -> None:
    began = time.monotonic() - 100
    manifests.write_all([Manifest("toy", "data", key, {}, {}, run_id="r1") for key in KEYS], began)
    write(spec, "score", KEYS[0], 40, run_id="r2", device="cuda")
    cost = refresh.refresh(spec).cost[datetime.now(UTC).isoformat()[:7]]
    assert cost["seconds"] == pytest.approx(140, abs=5)
    assert cost["gpu_seconds"] == pytest.approx(40, abs=3)


def test_a_proposal_is_pending_until_it_is_answered(spec: ModelSpec) -> None:
    def decide(decision: Decision) -> None:
        ledger.append("toy", kind=LedgerKind.RETRAINING, decision=decision, reason="drift", actor="policy",
                      partition=KEYS[0])  # fmt: skip

    decide(Decision.PROPOSED)
    status = refresh.refresh(spec)
    assert [p["partition"] for p in status.open_proposals()] == [KEYS[0]]
    assert status.open_proposals(datetime(2100, 1, 1, tzinfo=UTC)) == []
    decide(Decision.REQUESTED)
    assert refresh.refresh(spec).open_proposals() == []


def test_states_of_partitions(spec: ModelSpec) -> None:
    console_world.write_published(spec, *KEYS[:4])
    console_world.write_published(spec, KEYS[2], step="labels")
    for key in KEYS[1:3]:
        console_world.score(spec, key, "1")
    manifests.record_failure("toy", "data", KEYS[5], {}, retry=False)
    states = partition_states.states(spec, history.load("toy")[0], 100)
    assert [s.state for s in states] == [
        "published", "scored", "labelled", "published", "missing", "failed", *["missing"] * (len(KEYS) - 6),
    ]  # fmt: skip
    earlier = DAILY.shift(FIRST, -1)
    console_world.write_published(spec, DAILY.shift(FIRST, -2))
    states = partition_states.states(spec, history.load("toy")[0], 100)
    assert {s.key: s.state for s in states}[earlier] == "none"
    assert len(partition_states.states(spec, history.load("toy")[0], 3)) == 3


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "300"})
    return result.exit_code, result.output


def test_the_command_line_tells_the_same(spec: ModelSpec) -> None:
    console_world.write_published(spec)
    status, output = run("status", "toy", "--rebuild")
    assert (status, "no champion yet" in output, f"up to {KEYS[-1]}" in output) == (0, True, True)
    console_world.promote(spec, "1", KEYS[0])
    console_world.monitor(spec, KEYS[-1], "1", verdict="drifted")
    status, output = run("status", "toy", "--rebuild", "--json")
    (model,) = json.loads(output)
    assert (status, model["state"], model["status"]["champion"]["version"]) == (1, "bad", "1")
    assert run("status")[0] == 1 and "toy" in run("status")[1]
    assert "toy has nothing in quarantine" in run("quarantine", "toy")[1]
