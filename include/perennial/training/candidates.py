"""The models that one training makes, one of each window, and how they are judged on the same held-out rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.modeling import registry
from perennial.modeling.trained_model import TrainedModel
from perennial.training._dataset import Dataset
from perennial.training.challenger_evaluation import TrainingSource, evaluate_challenger
from perennial.training.checkpoint import Checkpoint, Trial
from perennial.training.dataset import build_dataset
from perennial.training.windows import Windows

if TYPE_CHECKING:
    import numpy as np

    from perennial.training._distributed_dataset import DistributedDataset
    from perennial.training.dask_cluster import WorkerPool
    from perennial.training.search import FitResult


@dataclass(frozen=True)
class Candidate:
    """A model made of one window.

    Attributes:
        judge: judges it, as `judge` does. example: a few encoded rows, shape (rows, columns).
        fit, rows: rows fitted on, and those together with the rows for early stopping.
    """

    kind: str
    split: Windows
    fitted: FitResult
    model: TrainedModel
    judge: Callable[[], dict[str, Any]]
    example: np.ndarray
    fit: int
    rows: int

    @cached_property
    def judged(self) -> dict[str, Any]:
        """As `judge` returns it, found out when it is first asked for."""
        return self.judge() | {"window": self.kind}

    @property
    def loss(self) -> float:
        """Mean loss on the held-out rows."""
        return float(self.judged["loss"])


def fit_best_candidate(
    source: TrainingSource,
    splits: Mapping[str, Windows],
    champion: registry.ModelVersion | None,
    folder: Path,
    checkpoints: Mapping[str, Checkpoint],
    on_trial: Callable[[Trial], None],
    workers: int,
    meeting: str | None,
) -> Candidate:
    """Fit a model on each window; of several, the one that loses least on the held-out rows.

    Args:
        splits: by name of the window; all hold out the same dates. checkpoints: one a window.
        workers, meeting: as `train.train` takes them.
    """
    found: Candidate | None = None
    with _crew(workers, meeting) as crew:
        for kind, split in splits.items():
            made = _fit(source, kind, split, champion, folder / kind, checkpoints[kind], on_trial, crew)
            found = made if found is None or made.loss < found.loss else found
    assert found is not None
    return found


@contextlib.contextmanager
def _crew(workers: int, meeting: str | None) -> Iterator[WorkerPool | None]:
    if workers == 1:
        yield None
        return
    from perennial.training.dask_cluster import worker_pool

    with worker_pool(workers, meeting) as found:
        yield found


def _fit(
    source: TrainingSource,
    kind: str,
    split: Windows,
    champion: registry.ModelVersion | None,
    folder: Path,
    checkpoint: Checkpoint,
    on_trial: Callable[[Trial], None],
    crew: WorkerPool | None,
) -> Candidate:
    from perennial.training import baseline_models
    from perennial.training import search as fitting

    spec = source.spec
    data = _rows(source, split, folder, crew)
    fitted = fitting.search_and_fit(spec, data, on_trial=on_trial, checkpoint=checkpoint)
    model = TrainedModel(fitted.booster, data.encoding, spec.task, data.classes)
    judging = partial(
        evaluate_challenger, source, split, model, baseline_models.fit_baselines(spec, data), champion
    )
    return Candidate(kind, split, fitted, model, judging, data.head(5), data.fit, data.rows)


def _rows(
    source: TrainingSource, split: Windows, folder: Path, crew: WorkerPool | None
) -> Dataset | DistributedDataset:
    """The rows that are fitted on: here in ``folder``, or on the crew's workers."""
    spec, features = source.spec, source.features
    if crew is None:
        folder.mkdir()
        return build_dataset(spec, features, split, folder, source.version, source.labels_version)
    from perennial.training import _distributed_dataset, distributed_dataset

    place = _distributed_dataset.DatasetRef(spec, features.reference_versions, source.version, source.labels_version)
    return distributed_dataset.build_distributed_dataset(crew, place, split, tuple(features.columns))
