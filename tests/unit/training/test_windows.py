"""Which partitions a training fits on, and which later ones evaluate it."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date

import pytest

from perennial.core import dates
from perennial.core.errors import DataError
from perennial.core.partitions import PartitionRange
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps.train import train
from perennial.storage import ledger
from perennial.storage.ledger import Decision, LedgerKind
from perennial.training.windows import (
    candidate_windows,
    common_validation,
    regular_holdout,
    split_partitions,
)
from support import toys

Make = Callable[..., ModelSpec]


def test_held_out_partitions_are_later_than_all_others(make: Make) -> None:
    spec = make()
    days = dates.dates(toys.FIRST, toys.LAST)
    split = split_partitions(spec, toys.LAST, days)
    assert split.trained_range == PartitionRange(split.fit[0], split.valid[-1])
    assert split.holdout_range == PartitionRange(split.holdout[0], split.holdout[-1])
    assert max(split.fit) < min(split.valid) <= max(split.valid) < min(split.holdout)
    assert max(split.holdout) == dates.add_days(toys.LAST, -1)  # the last day's labels are not there yet
    with pytest.raises(DataError, match="0 to evaluate on"):
        split_partitions(spec, dates.add_days(toys.LAST, 30), days)
    short = split_partitions(make(training={"window": "4 days", "holdout": "2 days"}), toys.LAST, days)
    assert (len(short.fit) + len(short.valid), len(short.holdout)) == (4, 2)
    # The window lies before the held-out days, so it may be shorter than they are.
    short = split_partitions(make(training={"window": "3 days", "holdout": "5 days"}), toys.LAST, days)
    assert (len(short.fit) + len(short.valid), len(short.holdout)) == (3, 5)


@pytest.mark.parametrize(
    ("as_of", "days", "remedy"),
    [
        (30, 20, f"train as of {dates.add_days(toys.FIRST, 20)} or earlier: the latest .* is {toys.LAST}"),
        (-3, 20, f"train as of a later date; the first labelled partition is {toys.FIRST}"),
        (5, 0, "backfill earlier partitions"),
        (5, 20, r"backfill 2 or more partitions before .*, or lower training.holdout \(5 days\)"),
        (2, 20, r"backfill 5 or more partitions before .*lower training.holdout"),
        (1, 20, r"^backfill 6 or more partitions before 2024-01-01 \(the data DAG, start and end\)$"),
    ],
)  # fmt: skip
def test_the_remedy_for_too_few_partitions_is_one_that_works(
    make: Make, as_of: int, days: int, remedy: str
) -> None:
    spec, available = make(), dates.dates(toys.FIRST, toys.LAST)[:days]
    with pytest.raises(DataError) as error:
        split_partitions(spec, dates.add_days(toys.FIRST, as_of), available)
    assert re.search(remedy, error.value.remedy), error.value.remedy
    if "or earlier" in remedy:
        assert split_partitions(spec, dates.add_days(toys.FIRST, 20), available).holdout
    if "lower" in remedy and as_of == 5:
        assert split_partitions(
            make(training={"holdout": "1 day"}), dates.add_days(toys.FIRST, as_of), available
        )


def test_the_windows_of_a_retraining(make: Make) -> None:
    spec = make(
        training={"window": "6 days", "holdout": "3 days"},
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
    for windows in (first, later):
        assert len({w.holdout for w in windows.values()}) == 1, "the windows are compared on these dates"
    young = candidate_windows(spec, "2024-01-20", days, "2024-01-18")
    assert set(young) == {"sliding", "expanding"}, "one day is too few to train on"


def test_short_and_medium_windows_are_within_the_usual_one(make: Make) -> None:
    named = {"windows": ["sliding", "medium", "short", "since_change"]}  # as by default
    spec = make(training={"holdout": "4 days"}, retraining=named)
    days = dates.dates("2024-01-01", "2024-01-30")
    windows = candidate_windows(spec, "2024-01-31", days, "")
    assert {name: len(w.fit + w.valid) for name, w in windows.items()} == {
        "sliding": 26,
        "medium": 12,
        "short": 4,
    }
    assert {w.holdout for w in windows.values()} == {tuple(days[-4:])}
    assert common_validation(windows) == tuple(days[-5:-4]), (
        "the latest date for early stopping of all windows"
    )
    assert list(candidate_windows(spec, "2024-01-31", days, days[-9])) == ["sliding", "since_change"]
    limited = make(training={"holdout": "4 days", "window": "10 days"}, retraining=named)
    assert list(candidate_windows(limited, "2024-01-31", days, "")) == ["sliding", "short"]


def dated(count: int, gap: int) -> list[str]:
    return [dates.add_days("2020-01-01", i * gap) for i in range(count)]


@pytest.mark.parametrize("gap", [1, 7, 30])
def test_partitions_are_counted_however_far_apart_they_are(make: Make, gap: int) -> None:
    spec, days = make(training={"window": "12 days", "holdout": "5 days"}), dated(30, gap)
    as_of = dates.add_days(days[-1], 1)  # labels arrive a day late
    split = split_partitions(spec, as_of, days)
    assert list(split.holdout) == days[-5:]
    assert list(split.fit + split.valid) == days[-17:-5]
    # Labels that are a few partitions late do not stop a training; those that stopped to arrive do.
    assert split_partitions(spec, dates.add_days(as_of, 3 * gap), days) == split
    with pytest.raises(DataError, match="0 to evaluate on"):
        split_partitions(spec, dates.add_days(as_of, 5 * gap), days)


def test_days_without_a_partition_do_not_shorten_the_held_out_part(make: Make) -> None:
    spec = make(training={"holdout": "5 days"})
    days = [d for d in dated(60, 1) if date.fromisoformat(d).weekday() < 5]
    split = split_partitions(spec, dates.add_days(days[-1], 1), days)
    assert list(split.holdout) == days[-5:]


@pytest.mark.parametrize(
    ("rows", "valid"),
    [
        ([900] * 90, 7),  # many rows a day: a week
        ([60] * 25, 5),  # a fifth
        ([0] * 25, 5),
        ([1] * 400, 50),  # a row a day: an eighth of the rows
        ([50] * 200, 20),  # until it has enough rows
        ([100, 100], 1),
        ([1000] + [10] * 20, 15),  # until it has an eighth of the rows, from partitions after the first
        ([10] * 10 + [500, 3], 1),  # no more, because less than half of the rows would be fitted on
        ([5, 700], 1),
    ],
)
def test_enough_rows_are_for_early_stopping_and_most_are_fitted_on(
    make: Make, rows: list[int], valid: int
) -> None:
    days = dated(len(rows) + 5, 1)
    by_day = dict(zip(days, [*rows, *[1] * 5], strict=True))
    split = split_partitions(make(), dates.add_days(days[-1], 1), days, rows=by_day)
    assert len(split.valid) == valid and len(split.fit) + len(split.valid) == len(rows)
    assert split == split_partitions(make(), dates.add_days(days[-1], 1), days, rows=by_day)


@pytest.mark.parametrize(
    ("holdout", "regular"), [("14 days", 7), ("8 days", 5), ("5 days", 5), ("3 days", 3), ("30 days", 15)]
)
def test_a_regular_training_holds_out_fewer_partitions_and_its_windows_keep_their_length(
    make: Make, holdout: str, regular: int
) -> None:
    spec, days = (
        make(training={"holdout": holdout}, retraining={"windows": ["sliding", "short"]}),
        dated(100, 1),
    )
    assert regular_holdout(spec) == regular
    windows = candidate_windows(spec, dates.add_days(days[-1], 1), days, "", held_out=regular)
    assert all(list(w.holdout) == days[-regular:] for w in windows.values())
    length = spec.training.holdout.partitions(spec.cadence)
    assert [*windows["short"].fit, *windows["short"].valid] == days[-regular - length : -regular]


def test_a_regular_training_holds_out_half_as_many_partitions(make_model: Make) -> None:
    spec = make_model(training={"holdout": "12 days", "rounds": 3})
    toys.publish(spec)
    ledger.append(
        spec.name, kind=LedgerKind.RETRAINING, decision=Decision.REQUESTED, reason="regular", actor="test",
        partition=toys.LAST, evidence={"triggers": ["regular"], "since": ""},
    )  # fmt: skip
    version = registry.get_version(spec.name, train(spec, as_of=toys.LAST)["version"])
    assert version.holdout_range == PartitionRange.between(
        dates.add_days(toys.LAST, -6), dates.add_days(toys.LAST, -1)
    )
