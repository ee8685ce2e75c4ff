"""Which partitions a training fits on, and which later ones evaluate it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from perennial.core import dates
from perennial.core.dates import DateRange
from perennial.core.errors import DataError
from perennial.spec.model_spec import ModelSpec
from perennial.training.windows import candidate_windows, split_partitions
from support import toys

Make = Callable[..., ModelSpec]


def test_held_out_partitions_are_later_than_all_others(make: Make) -> None:
    spec = make()
    days = dates.dates(toys.FIRST, toys.LAST)
    split = split_partitions(spec, toys.LAST, days)
    assert split.trained_range == DateRange(split.fit[0], split.valid[-1])
    assert split.holdout_range == DateRange(split.holdout[0], split.holdout[-1])
    assert max(split.fit) < min(split.valid) <= max(split.valid) < min(split.holdout)
    assert max(split.holdout) == dates.add_days(toys.LAST, -1)  # the last day's labels are not there yet
    with pytest.raises(DataError, match="0 to evaluate on"):
        split_partitions(spec, dates.add_days(toys.LAST, 30), days)
    short = split_partitions(make(training={"window_days": 4, "holdout_days": 2}), toys.LAST, days)
    assert (len(short.fit) + len(short.valid), len(short.holdout)) == (4, 2)


def test_the_windows_of_a_retraining(make: Make) -> None:
    spec = make(
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
    assert set(young) == {"sliding", "expanding"}, "one day is too few to train on"
