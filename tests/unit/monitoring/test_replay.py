"""Decisions over whole streams, as `make bench-loop` plays them: what harms is mended, the rest is left alone."""

from __future__ import annotations

import pytest

from bench import replay
from bench.streams import Stream
from support.monitored import make_spec


def play(kind: str, nights: int) -> tuple[Stream, replay.Played]:
    stream = Stream(kind, 0)
    world = replay.World.of(stream, make_spec())
    world.nights = world.nights[: stream.change + nights]
    return stream, replay.play(world, "ours")


def test_a_sudden_change_is_found_within_three_partitions_and_mended() -> None:
    stream, played = play("sudden", 12)
    first = played.trained[0]
    assert 0 < first - stream.change <= 3
    assert first in played.promoted
    calm, worst, last = sum(played.losses[:20]) / 20, max(played.losses[-12:]), sum(played.losses[-4:]) / 4
    assert worst > 1.5 * calm and last < 0.75 * worst


@pytest.mark.parametrize("kind", ["none", "idle column", "mix"])
def test_nothing_is_retrained_where_nothing_is_gained(kind: str) -> None:
    _, played = play(kind, 12)
    assert (played.alarms, played.trained) == ([], [])
