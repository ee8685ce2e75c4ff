"""Each followed number: silent on quiet nights, raised by the fault that it is there for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from bench import replay
from bench.streams import Stream
from perennial.modeling.trained_model import TrainedModel
from perennial.monitoring import baseline as baseline_module
from perennial.monitoring import drift_attribution, signals
from perennial.monitoring._change_detection import BETS, CLIP, fit_cusum_baseline, log_e_detector
from perennial.monitoring._loss_estimation import LossEstimator, fit_error_model
from perennial.monitoring.histograms import ReferenceColumn
from perennial.monitoring.nightly_sample import NightlySample, predict_margin
from perennial.monitoring.signals import Signal
from support.monitored import make_spec

QUIET, LIVE = range(46, 60), range(60, 74)
POLICY = {"window_days": 28, "min_rows": 100, "slices": ["region"], "fairness": ["sex"]}
COLUMNS = {"id": "string", "at": "timestamp", "region": "string", "sex": "string"}
SPEC = make_spec(monitoring=POLICY, data={"columns": COLUMNS, "personal": []})
Change = Callable[[NightlySample, TrainedModel], NightlySample]


@dataclass(frozen=True)
class Seen:
    """A model and what it is watched by."""

    model: TrainedModel
    watched: baseline_module.MonitoringBaseline
    live: NightlySample


def evidence(model: TrainedModel, nights: range) -> NightlySample:
    drawn = [Stream("none", 0).draw(n) for n in nights]
    x, y = np.concatenate([d[0] for d in drawn]), np.concatenate([d[1] for d in drawn])
    night = np.repeat(np.arange(len(nights)), [len(d[1]) for d in drawn])
    rng = np.random.default_rng(1)
    texts = {
        c: rng.choice(names, len(y)).astype(object)
        for c, names in (("region", ["n", "s"]), ("sex", ["f", "m"]))
    }
    dates = tuple(f"night {n}" for n in nights)
    return NightlySample(dates, night, x, predict_margin(model, x), model.predict_matrix(x), y, None, texts)


@pytest.fixture(scope="module")
def seen() -> Seen:
    stream = Stream("none", 0)
    drawn = [stream.draw(n) for n in range(46)]
    model = replay.fit(np.concatenate([d[0] for d in drawn]), np.concatenate([d[1] for d in drawn]))
    content, _ = baseline_module.build_baseline(SPEC, model, evidence(model, QUIET), dict)
    return Seen(model, baseline_module.parse_baseline(content, SPEC, None), evidence(model, LIVE))


def look(seen: Seen, nights: NightlySample) -> dict[str, Signal]:
    w = seen.watched
    attributed = signals.attributions(seen.model, nights)
    series = signals.nightly_series(SPEC, seen.model, nights, w.expected, attributed, w.shares, w.groups)
    return {n: signals.signal_from_series(v, nights.dates, w.baselines.get(n), n) for n, v in series.items()}


def again(seen: Seen, nights: NightlySample, x: np.ndarray) -> NightlySample:
    """The same nights with other features, as the model sees them."""
    x = x.astype(np.float32)
    return replace(nights, x=x, margin=predict_margin(seen.model, x), predicted=seen.model.predict_matrix(x))


def last(nights: NightlySample, n: int = 5) -> np.ndarray:
    return nights.night >= len(nights.dates) - n


def test_quiet_nights_raise_nothing(seen: Seen) -> None:
    found = look(seen, seen.live)
    assert {n: s.state for n, s in found.items() if s.state != "ok"} == {}
    assert {n.split(":")[0] for n in found} == {
        "performance", "calibration", "gain", "estimated", "attributions", "slice", "fairness",
    }  # fmt: skip


def test_turned_labels_raise_performance_and_value_on_the_night_it_began(seen: Seen) -> None:
    rows = last(seen.live)
    found = look(seen, replace(seen.live, y=np.where(rows, 1 - seen.live.y, seen.live.y)))
    assert found["performance"].state == "bad" and found["performance"].since == "night 69"
    assert found["gain"].state == "bad" and found["estimated"].state == "ok"


def test_a_single_odd_night_raises_no_alarm(seen: Seen) -> None:
    rows = last(seen.live, 1)
    found = look(seen, replace(seen.live, y=np.where(rows, 1 - seen.live.y, seen.live.y)))
    assert found["performance"].state == "suspected" and found["gain"].state != "bad"


def test_more_of_one_class_than_was_said_raises_calibration(seen: Seen) -> None:
    lucky = last(seen.live, 8) & (np.random.default_rng(0).random(len(seen.live.y)) < 0.25)
    found = look(seen, replace(seen.live, y=np.where(lucky, 1.0, seen.live.y)))
    assert found["calibration"].state == "bad" and found["calibration"].value > 0  # type: ignore[operator]


def test_harder_rows_raise_the_expected_loss_and_no_value(seen: Seen) -> None:
    x = seen.live.x.copy()
    x[last(seen.live, 8), :4] *= 0.2
    x[last(seen.live, 8), 0] += 1
    nights = again(seen, seen.live, x)
    rng = np.random.default_rng(0)
    nights = replace(
        nights, y=(rng.random(len(nights.y)) < nights.predicted).astype(float)
    )  # the model is right
    found = look(seen, nights)
    assert found["estimated"].state == "bad"
    assert found["performance"].state != "bad" and found["gain"].state == "ok"


def test_attributions_of_later_nights_are_those_among_all(seen: Seen) -> None:
    (every, nights), (late, those) = (signals.attributions(seen.model, seen.live, n) for n in (0, 5))
    assert len(those) and those.tolist() == [n for n in nights if n >= 5]
    assert np.array_equal(late, every[nights >= 5])


def test_a_broken_column_raises_attributions_without_any_label(seen: Seen) -> None:
    x = seen.live.x.copy()
    x[last(seen.live), 0] = 0
    nights = replace(again(seen, seen.live, x), y=np.full(len(x), np.nan))
    found = look(seen, nights)
    assert found["attributions"].state == "bad"
    assert found["performance"].state == found["gain"].state == "undetermined"


def test_a_slice_that_suffers_is_found_though_the_whole_does_not_show_it(seen: Seen) -> None:
    rare = (seen.live.texts["region"] == "n") & last(seen.live, 8)
    flipped = rare & (np.random.default_rng(0).random(len(rare)) < 0.5)
    found = look(seen, replace(seen.live, y=np.where(flipped, 1 - seen.live.y, seen.live.y)))
    assert found["slice:region=n"].state == "bad" and found["slice:region=s"].state == "ok"


def test_groups_that_are_treated_apart_raise_fairness(seen: Seen) -> None:
    worse = (seen.live.texts["sex"] == "f") & last(seen.live, 8)
    found = look(
        seen, replace(seen.live, predicted=np.where(worse, seen.live.predicted * 0.5, seen.live.predicted))
    )
    assert found["fairness:sex"].state == "bad"


def test_too_few_quiet_nights_leave_it_undetermined(seen: Seen) -> None:
    content, _ = baseline_module.build_baseline(SPEC, seen.model, evidence(seen.model, range(56, 60)), dict)
    watched = baseline_module.parse_baseline(content, SPEC, None)
    assert watched.baselines == {}
    assert {s.state for s in look(replace(seen, watched=watched), seen.live).values()} == {"undetermined"}


def test_a_model_judged_on_few_nights_is_watched_by_what_the_champion_left(seen: Seen) -> None:
    old, _ = baseline_module.build_baseline(SPEC, seen.model, evidence(seen.model, QUIET), dict)
    new, _ = baseline_module.build_baseline(SPEC, seen.model, evidence(seen.model, range(58, 60)), dict)
    both = baseline_module.inherit_from_champion(new, old)
    assert both["baselines"] == old["baselines"] and both["groups"]["region"] == ["n", "s"]
    assert all(both["nulls"][c] >= share for c, share in old["nulls"].items())
    assert (
        baseline_module.inherit_from_champion(new, None)
        == baseline_module.inherit_from_champion(new, {"format": 0})
        == new
    )  # one of an earlier release


def test_levels_are_the_mean_of_the_bets_each_night() -> None:
    z = np.random.default_rng(0).normal(0.3, 2, (3, 40))
    for series, found in zip(z, log_e_detector(z), strict=True):
        level = dict.fromkeys(BETS, 0.0)
        for night, value in enumerate(np.clip(series, -CLIP, CLIP)):
            level = {bet: max(old, 0.0) + bet * value - bet**2 / 2 for bet, old in level.items()}
            assert found[night] == pytest.approx(np.log(np.mean(np.exp(list(level.values())))), rel=1e-12)


def test_false_alarms_keep_to_the_budget() -> None:
    """Normal nights at the very edge of what does no harm, and nights with heavy tails."""
    rng = np.random.default_rng(0)
    heavy = 0.5 + rng.standard_t(5, (401, 365)) / np.sqrt(5 / 3)
    for nights in (rng.normal(0.5, 1, (401, 365)), heavy):
        quiet = fit_cusum_baseline(nights[0, :60] - 0.5, allowance=0.5, false_alarms=0.5)
        assert quiet is not None
        edge = replace(quiet, mean=0.0, sd=max(quiet.sd, 1.0), allowance=0.5)
        assert (log_e_detector(edge.z(nights[1:])).max(axis=1) > quiet.limit).mean() < 0.5


def test_the_error_model_of_a_regression_knows_where_errors_are_large() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((4000, 2)).astype(np.float32)
    losses = (rng.normal(size=4000) * (1 + 3 * (x[:, 0] > 0.5))) ** 2
    booster, apart = fit_error_model(x, losses, np.repeat(np.arange(8), 500))
    found = LossEstimator("regression", "squared_error", booster).losses(x, x[:, 0])
    assert found is not None
    for guess in (found, apart):
        assert guess[x[:, 0] > 0.5].mean() == pytest.approx(losses[x[:, 0] > 0.5].mean(), rel=0.15)
        assert guess[x[:, 0] < 0.5].mean() == pytest.approx(losses[x[:, 0] < 0.5].mean(), rel=0.3)


def test_the_loss_that_a_column_explains_is_that_of_its_bins() -> None:
    shape = ReferenceColumn("numeric", [50, 50, 0], edges=[0.5])
    losses = [0.2, 0.6, 0.4]
    assert drift_attribution.loss_attributable_to_drift(shape.counts, [50, 50, 0], losses) == pytest.approx(0)
    assert drift_attribution.loss_attributable_to_drift(shape.counts, [0, 100, 0], losses) == pytest.approx(
        0.2
    )
    assert drift_attribution.loss_attributable_to_drift(shape.counts, [0, 0, 0], losses) is None
