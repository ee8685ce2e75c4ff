"""Decisions over whole streams, as `make bench-loop` replays them: harmful changes are corrected, others ignored."""

from __future__ import annotations

import pytest

from bench import replay
from bench.streams import Stream
from support.monitored import make_spec


def replay_stream(kind: str, nights: int) -> tuple[Stream, replay.Replay]:
    stream = Stream(kind, 0)
    scenario = replay.Scenario.from_stream(stream, make_spec())
    scenario.nights = scenario.nights[: stream.change + nights]
    return stream, replay.replay_policy(scenario, "perennial")


def test_a_sudden_change_is_detected_within_three_partitions_and_corrected() -> None:
    stream, replayed = replay_stream("sudden", 12)
    first = replayed.trained[0]
    assert 0 < first - stream.change <= 3
    assert first in replayed.promoted
    calm, worst, last = (
        sum(replayed.losses[:20]) / 20,
        max(replayed.losses[-12:]),
        sum(replayed.losses[-4:]) / 4,
    )
    assert worst > 1.5 * calm and last < 0.75 * worst


@pytest.mark.parametrize("kind", ["none", "idle column", "mix"])
def test_harmless_changes_lead_to_no_retraining(kind: str) -> None:
    _, replayed = replay_stream(kind, 12)
    assert (replayed.alarms, replayed.trained) == ([], [])
