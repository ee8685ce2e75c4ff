"""Which days a training learns from, and which later ones judge it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from perennial.core import dates
from perennial.core.errors import DataError
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps.train import train
from perennial.storage import ledger
from perennial.training.windows import candidate_windows, split_partitions
from support import toys

Make = Callable[..., ModelSpec]


def test_judged_rows_are_later_than_all_that_was_learned_from(make_model: Make) -> None:
    spec = make_model()
    days = dates.dates(toys.FIRST, toys.LAST)
    split = split_partitions(spec, toys.LAST, days)
    assert max(split.fit) < min(split.valid) <= max(split.valid) < min(split.holdout)
    assert max(split.holdout) == dates.add_days(toys.LAST, -1)  # the last day's labels are not there yet
    with pytest.raises(DataError, match="0 to judge on"):
        split_partitions(spec, dates.add_days(toys.LAST, 30), days)
    short = split_partitions(make_model(training={"window_days": 4, "holdout_days": 2}), toys.LAST, days)
    assert (len(short.fit) + len(short.valid), len(short.holdout)) == (4, 2)


def test_the_windows_of_a_retraining(make_model: Make) -> None:
    spec = make_model(
        training={"window_days": 6, "holdout_days": 3},
        retraining={"windows": ["sliding", "expanding", "since_change"]},
    )
    days = dates.dates("2024-01-01", "2024-01-20")
    first = candidate_windows(spec, "2024-01-20", days, "")
    assert {k: (w.fit[0], w.holdout[0]) for k, w in first.items()} == {
        "sliding": ("2024-01-11", "2024-01-17"), "expanding": ("2024-01-01", "2024-01-17"),
    }  # fmt: skip
    later = candidate_windows(spec, "2024-01-20", days, "2024-01-15")
    assert {k: (w.fit[0], w.holdout[0]) for k, w in later.items()} == {
        "sliding": ("2024-01-13", "2024-01-19"), "expanding": ("2024-01-01", "2024-01-19"),
        "since_change": ("2024-01-15", "2024-01-19"),
    }  # fmt: skip
    young = candidate_windows(spec, "2024-01-20", days, "2024-01-18")
    assert set(young) == {"sliding", "expanding"}, "one day to learn from is none"


def test_a_retraining_learns_from_the_better_of_the_usual_window_and_the_time_since_the_change(
    make_model: Make,
) -> None:
    spec = make_model(training={"rounds": 10, "holdout_days": 5})
    toys.publish(spec)
    change = dates.add_days(toys.LAST, -8)
    ledger.append(
        spec.name, kind="retraining", decision="requested", reason="value", actor="test", partition=toys.LAST,
        evidence={"since": change},
    )  # fmt: skip
    result = train(spec, as_of=toys.LAST)
    assert result["since"] == change and result["window"] in ("sliding", "since_change")
    version = registry.version(spec.name, result["version"])
    # Eight labelled days since the change: a third of them judges.
    assert version.tags["judged_on"] == f"{dates.add_days(toys.LAST, -2)}..{dates.add_days(toys.LAST, -1)}"
    first = change if result["window"] == "since_change" else toys.FIRST
    assert version.tags["trained_on"].startswith(first)


@pytest.mark.parametrize("days", [1, 5, 6])
def test_too_few_days_are_told(make_model: Make, days: int) -> None:
    spec = make_model()
    toys.publish(spec, days=days)
    with pytest.raises(DataError, match="too few"):
        train(spec, as_of=dates.add_days(toys.FIRST, days - 1))
