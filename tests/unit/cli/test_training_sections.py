"""The sections of a new model about training and monitoring: valid for any feed, and such that it can meet them."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from perennial.cli.new.training_sections import (
    holdout_partitions,
    monitoring_lines,
    monitoring_window,
    training_lines,
)
from perennial.core import dates
from perennial.core.partitions import DAILY, Cadence, Unit
from perennial.spec.constraints import Within
from perennial.spec.policies import MonitoringSpec
from perennial.spec.sections import TrainingSpec


def within_bounds(section: BaseModel, key: str, cadence: Cadence) -> bool:
    """Whether a duration of a section is one that a spec accepts."""
    (bounds,) = (m for m in type(section).model_fields[key].metadata if isinstance(m, Within))
    bounds.check(key, getattr(section, key), cadence)
    return True


def feed(rows: list[int], gap: int) -> dict[str, int]:
    return {dates.add_days("2020-01-01", i * gap): count for i, count in enumerate(rows)}


@settings(max_examples=200)
@given(
    rows=st.lists(st.integers(1, 100_000), min_size=1, max_size=300),
    gap=st.sampled_from([1, 7, 30, 365]),
    task=st.sampled_from(["binary", "multiclass", "regression", "ranking"]),
)
def test_any_feed_gets_valid_sections(rows: list[int], gap: int, task: str) -> None:
    days = feed(rows, gap)
    training = TrainingSpec.model_validate(yaml.safe_load("\n".join(training_lines(task, days)))["training"])
    monitoring = MonitoringSpec.model_validate(
        yaml.safe_load("\n".join(monitoring_lines(days)))["monitoring"]
    )
    assert within_bounds(training, "holdout", DAILY) and within_bounds(monitoring, "window", DAILY)
    assert training.candidates == ["trees", "linear"]
    assert set(training.params) == set(training.search.space), "so that the search begins with them"
    assert all(training.search.space[name].contains(value) for name, value in training.params.items())
    if len(rows) >= 4:
        assert len(rows) - training.holdout.partitions(DAILY) >= 2, "partitions remain to train on"


@settings(max_examples=200)
@given(rows=st.integers(1, 5000), count=st.integers(2, 800), gap=st.sampled_from([1, 7]))
def test_a_steady_feed_has_the_rows_that_monitoring_needs(rows: int, count: int, gap: int) -> None:
    window, min_rows = monitoring_window(feed([rows] * count, gap))
    assert rows * (window // gap) >= min_rows


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([900] * 90, 14),
        ([900] * 365, 14),
        ([1] * 400, 100),  # a row a day: a quarter, for a narrower interval
        ([60] * 30, 7),
        ([100] * 24, 6),
        ([100] * 12, 5),  # what monitoring needs
        ([100] * 8, 2),
        ([100] * 3, 1),
        ([50] * 300, 20),  # until it has enough rows
        ([1] * 2000, 365),
    ],
)
def test_the_held_out_part_has_enough_partitions_and_rows(rows: list[int], expected: int) -> None:
    assert holdout_partitions(rows) == expected


@pytest.mark.parametrize(
    ("rows", "count", "gap", "expected"),
    [
        (900, 90, 1, (28, 1000)),
        (900, 30, 1, (7, 1000)),
        (60, 30, 1, (7, 105)),
        (1, 400, 1, (100, 25)),
        (1, 12, 1, (20, 10)),
        (100, 60, 7, (70, 250)),
        (5000, 60, 7, (49, 1000)),
        (5000, 36, 30, (210, 1000)),
        (20, 36, 30, (270, 45)),
    ],
)
def test_the_monitoring_window_fits_the_feed(
    rows: int, count: int, gap: int, expected: tuple[int, int]
) -> None:
    assert monitoring_window(feed([rows] * count, gap)) == expected


def test_an_objective_without_negative_predictions_excludes_the_linear_model() -> None:
    lines = "\n".join(training_lines("regression", feed([10] * 30, 1), "count:poisson"))
    training = TrainingSpec.model_validate(yaml.safe_load(lines)["training"])
    assert training.candidates == ["trees"] and training.objective == "count:poisson"


@pytest.mark.parametrize(
    ("unit", "first", "count", "rows", "expected"),
    [
        ("hour", "2024-01-01T00", 240, 100, ("24 hours", "168 hours")),  # whole days
        ("hour", "2024-01-01T00", 20, 100, ("5 hours", "168 hours")),  # too few for a whole day
        ("week", "2024-01-01", 60, 100, ("14 weeks", "10 weeks")),
        ("month", "2024-01", 36, 5000, ("9 months", "7 months")),
        ("month", "2010-01", 170, 10, ("12 months", "12 months")),
    ],
)
def test_durations_have_the_unit_of_the_cadence(
    unit: Unit, first: str, count: int, rows: int, expected: tuple[str, str]
) -> None:
    cadence = Cadence(unit)
    days = {cadence.shift(first, i): rows for i in range(count)}
    lines = "\n".join([*training_lines("binary", days, cadence=cadence), *monitoring_lines(days, cadence)])
    sections = yaml.safe_load(lines)
    training = TrainingSpec.model_validate(sections["training"])
    monitoring = MonitoringSpec.model_validate(sections["monitoring"])
    assert (str(training.holdout), str(monitoring.window)) == expected
    assert within_bounds(training, "holdout", cadence) and within_bounds(monitoring, "window", cadence)


@pytest.mark.parametrize(
    ("rows", "features", "waits"),
    [
        (500, 9, (1000, 100)),
        (501, 9, (2000, 100)),
        (2500, 20, (1000, 50)),
        (250_000, 20, (500, 30)),
    ],
)
def test_boosting_waits_longer_where_it_is_cheap(rows: int, features: int, waits: tuple[int, int]) -> None:
    text = "\n".join(training_lines("regression", feed([rows] * 40, 1), features=features))
    training = yaml.safe_load(text)["training"]
    assert (training["rounds"], training["early_stopping_rounds"]) == waits


def test_rounds_of_rows_in_time_order_are_chosen_on_several_cuts() -> None:
    days = feed([100] * 40, 1)
    lines, shuffled = (training_lines("regression", days, shuffled=value) for value in (False, True))
    assert [line for line in lines if line not in shuffled] == ["  early_stopping_cuts: 4"]
