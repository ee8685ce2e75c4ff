"""Decisions over whole streams, as `make bench-loop` replays them: harmful changes are corrected, others ignored."""

from __future__ import annotations

import numpy as np
import pytest

from bench import real_streams, replay
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


def test_a_real_stream_is_the_same_in_every_run() -> None:
    (stream,) = (s for s in real_streams.STREAMS if s.name == "warmer")
    first, second = stream.scenario(), stream.scenario()
    assert first.history == 90 and 300 < len(first.nights) <= len(real_streams.DAYS)
    for (x, y), (x_again, y_again) in zip(first.nights, second.nights, strict=True):
        np.testing.assert_array_equal(x, x_again)
        np.testing.assert_array_equal(y, y_again)
    # Three airports by 24 hours; the label says how the temperature, a feature, goes on at the same hour tomorrow.
    by_place_and_hour = [{tuple(row[:2]): row[2] for row in x} for x, _ in first.nights]
    x, y = first.nights[100]
    later = np.array([by_place_and_hour[101].get(tuple(row[:2]), np.nan) for row in x])
    known = ~np.isnan(later)
    assert known.sum() > 60 and len(x) <= 72
    np.testing.assert_array_equal(y[known], later[known] > x[known, 2])
