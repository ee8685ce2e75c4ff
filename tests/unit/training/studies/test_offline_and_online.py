"""What the gate measures before a version serves ranks versions as their predictions of later partitions do."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from perennial.core import dates
from perennial.monitoring import performance
from perennial.spec.model_spec import ModelSpec
from perennial.steps.promote import promote
from perennial.steps.score import score
from perennial.steps.train import train
from support import toys

TRAINED_UNTIL = dates.add_days(toys.FIRST, 14)
SERVED_FROM = dates.add_days(toys.FIRST, 15)


def served_loss(spec: ModelSpec, version: str) -> float:
    """Log loss of a version's stored predictions of the partitions after its training."""
    rows: list[performance.LabelledPredictions] = []
    performance.measure(
        spec, start=SERVED_FROM, as_of=toys.LAST, model_version=version, metrics_at_training={}, classes=(),
        on_rows=rows.append,
    )  # fmt: skip
    (labelled,) = rows
    probability = np.where(labelled.y == 1, labelled.predicted, 1 - labelled.predicted)
    return float(-np.log(np.maximum(probability, 1e-7)).mean())


def test_held_out_loss_ranks_versions_as_served_loss_does(tmp_path: Path, mlflow_url: str) -> None:
    """Three models of the same rows, each with more trees than the one before."""
    held_out, served = [], []
    with toys.working_folder(tmp_path, mlflow_url) as patch:
        toys.let_all_pass(patch)
        name = toys.unique()
        for rounds in (1, 4, 25):
            spec = toys.model(tmp_path / "models", name, training={"rounds": rounds})
            if rounds == 1:
                toys.publish(spec)
            result = train(spec, as_of=TRAINED_UNTIL)
            promote(spec, as_of=TRAINED_UNTIL, actor="tests")
            score(spec, start=SERVED_FROM, end=toys.LAST, force=True)
            held_out.append(result["metrics"]["log_loss"])
            served.append(served_loss(spec, result["version"]))
    assert held_out == sorted(held_out, reverse=True)
    assert served == sorted(served, reverse=True)
    assert np.corrcoef(held_out, served)[0, 1] > 0.95
