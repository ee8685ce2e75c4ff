"""What `perennial incidents` prints: open incidents, closed ones on request, mutes, and what waits for a channel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perennial.alerting import incidents
from perennial.alerting.incidents import SignalObservation
from perennial.cli.app import app
from perennial.spec.model_spec import ModelSpec
from support import toys

FIRST, SECOND = "2024-01-05", "2024-01-06"


@pytest.fixture
def spec(empty_home: Path, tmp_path: Path) -> ModelSpec:
    """A model whose feature signal is bad for two dates, and whose null signal was bad for one."""
    channel = {"name": "hook", "kind": "webhook", "url": "https://example.com/hook"}
    spec = toys.model(tmp_path / "models", "toy", alerts={"channels": [channel]})
    bad = SignalObservation("bad", "x moved")
    incidents.record_signals(spec, FIRST, {"features": bad, "nulls": SignalObservation("bad", "z is empty")})
    incidents.record_signals(spec, SECOND, {"features": bad, "nulls": SignalObservation("ok")})
    return spec


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["incidents", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def rows(output: str) -> list[list[str]]:
    """The cells of the lines on incidents; a reason may be several cells."""
    return [line.split() for line in output.splitlines() if line.startswith("toy  ")]


def test_open_incidents_are_listed_with_their_dates_and_number(spec: ModelSpec) -> None:
    (line,) = rows(run("toy"))
    assert line == ["toy", "features", "1", "bad", FIRST, SECOND, "2", "x", "moved"]


def test_closed_incidents_are_listed_on_request(spec: ModelSpec) -> None:
    lines = {line[1]: line[2:] for line in rows(run("toy", "--all"))}
    assert lines["nulls"] == ["1", "closed", "at", SECOND, FIRST, FIRST, "1", "z", "is", "empty"]
    assert set(lines) == {"features", "nulls"}


def test_mutes_and_what_waits_for_its_channel_are_told(spec: ModelSpec) -> None:
    reason = ["--until", "2024-01-31", "--reason", "a strike"]
    CliRunner().invoke(app, ["mute", "toy", "features", *reason], catch_exceptions=False)
    output = run("toy")
    assert rows(output)[0][3:5] == ["bad,", "muted"]
    assert "toy: features muted until 2024-01-31: a strike" in output
    # two that opened, and one that closed
    assert "3 messages could not be delivered yet" in output


def test_json_holds_the_whole_log(spec: ModelSpec) -> None:
    content = json.loads(run("toy", "--json"))
    assert set(content) == {"toy"}
    assert content["toy"]["incidents"]["features"]["count"] == 2
    assert content["toy"]["incidents"]["nulls"]["closed"] == SECOND


def test_without_incidents_it_says_so(empty_home: Path, tmp_path: Path) -> None:
    toys.model(tmp_path / "models", "toy")
    assert run("toy").strip() == "There are no open incidents."
