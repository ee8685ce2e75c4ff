"""A model fitted to a generated stream, with its monitoring baseline, and samples of the stream's partitions."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import replay
from bench.streams import Stream
from perennial.modeling.trained_model import TrainedModel
from perennial.monitoring import baseline, signals
from perennial.monitoring.partition_sample import PartitionSample
from perennial.monitoring.signals import Signal
from support.monitored import make_spec

#: Partitions of the stream without a change: for training, for the baseline, and later ones.
TRAINING, HOLDOUT, LIVE = range(46), range(46, 60), range(60, 74)
POLICY = {"window": "28 days", "min_rows": 100, "slices": ["region"], "fairness": ["sex"]}
COLUMNS = {"id": "string", "at": "timestamp", "region": "string", "sex": "string"}
SPEC = make_spec(monitoring=POLICY, data={"columns": COLUMNS, "personal": []})


@dataclass(frozen=True)
class Monitored:
    """A model, its baseline, and a sample of partitions after the training."""

    model: TrainedModel
    baseline: baseline.MonitoringBaseline
    live: PartitionSample


def draw(nights: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels, and the index of each row's partition."""
    drawn = [Stream("none", 0).draw(n) for n in nights]
    x, y = np.concatenate([d[0] for d in drawn]), np.concatenate([d[1] for d in drawn])
    return x, y, np.repeat(np.arange(len(nights)), [len(d[1]) for d in drawn])


def sample(model: TrainedModel, nights: range) -> PartitionSample:
    """All rows of some partitions, with the columns of `SPEC` by which they are grouped."""
    x, y, night = draw(nights)
    rng = np.random.default_rng(1)
    groupings = {
        c: rng.choice(names, len(y)).astype(object)
        for c, names in (("region", ["n", "s"]), ("sex", ["f", "m"]))
    }
    dates = tuple(f"night {n}" for n in nights)
    margin, predicted = model.predict_margin(x), model.predict_matrix(x)
    return PartitionSample(dates, night, x, margin, predicted, y, None, groupings)


@functools.cache
def fit_monitored() -> Monitored:
    """Fit the model and make its baseline."""
    x, y, _ = draw(TRAINING)
    model = replay.fit(SPEC, x, y)
    content = build_baseline(model, HOLDOUT)
    return Monitored(model, baseline.parse_baseline(content, SPEC, None), sample(model, LIVE))


def build_baseline(model: TrainedModel, nights: range) -> dict[str, Any]:
    """The content of a baseline from some held-out partitions."""
    return baseline.build_baseline(SPEC, model, sample(model, nights), dict)[0]


def evaluate(monitored: Monitored, nights: PartitionSample) -> dict[str, Signal]:
    """The signal of each series of a sample, by name."""
    compared = monitored.baseline
    series = signals.monitored_series(
        SPEC,
        monitored.model,
        nights,
        compared.loss_estimator,
        signals.attribution_means(monitored.model, nights),
        compared.attribution_shares,
        compared.groups,
    )
    return {
        name: signals.signal_from_series(values, nights.dates, compared.series.get(name), name)
        for name, values in series.items()
    }
