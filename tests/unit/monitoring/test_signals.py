"""Each series: no alarm without a change, and an alarm for the fault that it is there for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from perennial.modeling.encoding import Encoding
from perennial.modeling.trained_model import TrainedModel
from perennial.monitoring import signals
from perennial.monitoring._loss_estimation import LossEstimator
from perennial.monitoring.partition_sample import PartitionSample
from support.monitored import fit, make_spec
from support.streamed import Monitored, evaluate, fit_monitored


@pytest.fixture(scope="module")
def monitored() -> Monitored:
    return fit_monitored()


def with_features(monitored: Monitored, x: np.ndarray) -> PartitionSample:
    """The live partitions with other features, as the model sees them."""
    x = x.astype(np.float32)
    model = monitored.model
    margin, predicted = model.predict_margin(x), model.predict_matrix(x)
    return replace(monitored.live, x=x, margin=margin, predicted=predicted)


def last(nights: PartitionSample, n: int = 5) -> np.ndarray:
    """A mask of the rows of the last ``n`` partitions."""
    return nights.partition_index >= len(nights.dates) - n


def flip(nights: PartitionSample, rows: np.ndarray) -> PartitionSample:
    """The sample with the labels of some rows turned around."""
    return replace(nights, y=np.where(rows, 1 - nights.y, nights.y))


def test_partitions_without_a_change_raise_nothing(monitored: Monitored) -> None:
    result = evaluate(monitored, monitored.live)
    assert {n: s.state for n, s in result.items() if s.state != "ok"} == {}
    assert {n.split(":")[0] for n in result} == {
        "performance", "calibration", "gain", "estimated", "attributions", "slice", "fairness",
    }  # fmt: skip


def test_flipped_labels_raise_performance_and_gain_with_the_date_of_the_change(monitored: Monitored) -> None:
    result = evaluate(monitored, flip(monitored.live, last(monitored.live)))
    assert result["performance"].state == "bad" and result["performance"].since == "night 69"
    assert result["gain"].state == "bad" and result["estimated"].state == "ok"


def test_a_single_odd_partition_raises_no_alarm(monitored: Monitored) -> None:
    result = evaluate(monitored, flip(monitored.live, last(monitored.live, 1)))
    assert result["performance"].state == "suspected" and result["gain"].state != "bad"


def test_more_of_one_class_than_predicted_raises_calibration(monitored: Monitored) -> None:
    live = monitored.live
    positive = last(live, 8) & (np.random.default_rng(0).random(len(live.y)) < 0.25)
    result = evaluate(monitored, replace(live, y=np.where(positive, 1.0, live.y)))
    assert result["calibration"].state == "bad" and result["calibration"].value > 0  # type: ignore[operator]


def test_harder_rows_raise_the_expected_loss_and_no_gain(monitored: Monitored) -> None:
    live = monitored.live
    x = live.x.copy()
    x[last(live, 8), :4] *= 0.2
    x[last(live, 8), 0] += 1
    nights = with_features(monitored, x)
    rng = np.random.default_rng(0)
    # the model's probabilities are right
    nights = replace(nights, y=(rng.random(len(nights.y)) < nights.predicted).astype(float))
    result = evaluate(monitored, nights)
    assert result["estimated"].state == "bad"
    assert result["performance"].state != "bad" and result["gain"].state == "ok"


def test_attributions_of_later_partitions_are_those_among_all(monitored: Monitored) -> None:
    every, later = (signals.attribution_means(monitored.model, monitored.live, n) for n in (0, 5))
    assert len(later.partitions) and later.partitions.tolist() == [n for n in every.partitions if n >= 5]
    assert np.array_equal(later.means, every.means[every.partitions >= 5])


def test_a_broken_column_raises_attributions_without_any_label(monitored: Monitored) -> None:
    x = monitored.live.x.copy()
    x[last(monitored.live), 0] = 0
    result = evaluate(monitored, replace(with_features(monitored, x), y=np.full(len(x), np.nan)))
    assert result["attributions"].state == "bad"
    assert result["performance"].state == result["gain"].state == "undetermined"


def test_a_degraded_slice_is_detected_though_the_whole_does_not_show_it(monitored: Monitored) -> None:
    rare = (monitored.live.groupings["region"] == "n") & last(monitored.live, 8)
    flipped = rare & (np.random.default_rng(0).random(len(rare)) < 0.5)
    result = evaluate(monitored, flip(monitored.live, flipped))
    assert result["slice:region=n"].state == "bad" and result["slice:region=s"].state == "ok"


def test_groups_that_are_treated_differently_raise_fairness(monitored: Monitored) -> None:
    live = monitored.live
    worse = (live.groupings["sex"] == "f") & last(live, 8)
    result = evaluate(
        monitored, replace(live, predicted=np.where(worse, live.predicted * 0.5, live.predicted))
    )
    assert result["fairness:sex"].state == "bad"


def test_the_fairness_of_classes_is_the_gap_of_the_class_that_differs_most() -> None:
    """Groups whose largest gap is not in the first class, in the second of two partitions."""
    by_group = {"f": [[0.5, 0.3, 0.2], [0.5, 0.1, 0.4]], "m": [[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]]}
    rows = 40
    groups = np.asarray(["f", "m"] * rows + ["f", "m"] * rows, object)
    partition_index = np.repeat([0, 1], 2 * rows)
    predicted = np.asarray([by_group[g][p] for g, p in zip(groups, partition_index, strict=True)])
    sample = PartitionSample(
        ("2024-01-01", "2024-01-02"), partition_index, np.zeros((len(groups), 1), np.float32),
        np.log(predicted), predicted, np.zeros(len(groups)), None, {"sex": groups},
    )  # fmt: skip
    spec = make_spec(
        task="multiclass", monitoring={"fairness": ["sex"]},
        data={"columns": {"id": "string", "at": "timestamp", "sex": "string"}, "personal": []},
        label={"columns": {"id": "string", "y": "string"}}, features={"categorical": [], "personal": {}},
    )  # fmt: skip
    model = TrainedModel(fit().booster, Encoding(("x",), {}), "multiclass", ("a", "b", "c"))
    none = signals.Attributions(np.zeros((0, 1)), np.zeros(0, np.int64))
    series = signals.monitored_series(
        spec, model, sample, LossEstimator("multiclass", "log_loss"), none, np.ones(1), {"sex": ["f", "m"]}
    )
    assert series["fairness:sex"] == pytest.approx([0.0, 0.3])
