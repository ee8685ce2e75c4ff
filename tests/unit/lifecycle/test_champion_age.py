"""The trigger ``worth``: what the staleness curve of the latest training says of a champion's age."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from perennial.storage import manifests
from perennial.storage.manifests import Manifest
from support.decisions import decide_on, make_policy, record_training
from support.monitored import World

WORTH = {"triggers": ["worth"], "min_gain": 0.02}
OK: dict[str, Any] = {"verdict": "ok", "champion_as_of": "2024-01-01", "signals": {}}


@pytest.fixture(autouse=True)
def _home(make_world: Callable[..., World]) -> None:
    make_world()


def write_curve(as_of: str, *ages: tuple[int, float, float]) -> None:
    """A training with a curve: partitions older, rise of the loss, and the lower end of its interval."""
    points = [{"older_by": n, "rise": rise, "low": low, "high": 2 * rise - low} for n, rise, low in ages]
    manifests.write(
        Manifest("toy", "train", as_of, {}, {"staleness": {"as_of": as_of, "ages": points}}), time.monotonic()
    )


def test_a_champion_as_old_as_models_that_clearly_lost_is_retrained() -> None:
    write_curve("2024-01-01", (0, 0.0, 0.0), (4, 0.01, 0.005), (8, 0.06, 0.04))
    young = decide_on("2024-01-08", make_policy(**WORTH), **OK)
    assert young["retrain"] is False, "seven partitions: models four older lost too little"
    old = decide_on("2024-01-09", make_policy(**WORTH), **OK)
    assert old["retrain"] is True and old["triggers"] == ["worth"]
    assert "a model 8 partitions older than another one had 6.0% [4.0%, 8.0%] more loss" in old["reason"]
    # It starts a cooldown, as signals do.
    record_training("2024-01-09")
    again = decide_on("2024-01-10", make_policy(**WORTH), **OK)
    assert again["retrain"] is False and "cooldown" in again["reason"]


def test_a_loss_that_is_not_clear_or_was_measured_later_or_not_at_all_requests_nothing() -> None:
    assert decide_on("2024-01-09", make_policy(**WORTH), **OK)["retrain"] is False
    write_curve("2024-01-01", (0, 0.0, 0.0), (8, 0.09, 0.019))
    write_curve("2024-01-20", (0, 0.0, 0.0), (8, 0.09, 0.08))
    assert decide_on("2024-01-10", make_policy(**WORTH), **OK)["retrain"] is False
    assert decide_on("2024-01-20", make_policy(**WORTH), **OK)["retrain"] is True


def test_it_is_not_a_default() -> None:
    write_curve("2024-01-01", (0, 0.0, 0.0), (1, 0.5, 0.4))
    assert decide_on("2024-01-03", make_policy(), **OK)["retrain"] is False
