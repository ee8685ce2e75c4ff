"""The candidates of a training, one for each window, and the selection of the best."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from perennial.modeling.registry import ModelVersion
from perennial.modeling.trained_model import TrainedModel
from perennial.training import search
from perennial.training._baseline_models import fit_baseline_models
from perennial.training._dataset import TrainingData, build_dataset
from perennial.training.challenger_evaluation import Evaluation, TrainingSource, evaluate_challenger
from perennial.training.checkpoint import Checkpoint, SearchTrial
from perennial.training.search import FitResult
from perennial.training.windows import Windows

if TYPE_CHECKING:
    from perennial.training.dask_cluster import WorkerPool


@dataclass(frozen=True)
class TrainingJob:
    """The inputs that all candidates of a training share.

    Attributes:
        source: the data of the training.
        champion: the champion; None if there is none.
        folder: working folder.
        checkpoints: checkpoint by name of the window.
        on_trial: called with each search trial.
        workers: number of processes that fit a model together.
        rendezvous: URI of the file where workers that run elsewhere find this process; None: processes of this
            machine.
    """

    source: TrainingSource
    champion: ModelVersion | None
    folder: Path
    checkpoints: Mapping[str, Checkpoint]
    on_trial: Callable[[SearchTrial], None]
    workers: int = 1
    rendezvous: str | None = None


@dataclass(frozen=True)
class Candidate:
    """A model fitted on one window.

    Attributes:
        window_name: name of the window.
        windows: dates that it was fitted on, and held-out dates.
        fitted: result of the search and the final fit.
        model: the model.
        evaluate: evaluates it on the held-out rows.
        example: a few encoded rows, shape (rows, columns).
        fit_rows: number of rows to fit on during the search.
        rows: number of rows, those for early stopping included.
    """

    window_name: str
    windows: Windows
    fitted: FitResult
    model: TrainedModel
    evaluate: Callable[[], Evaluation]
    example: np.ndarray
    fit_rows: int
    rows: int

    @cached_property
    def evaluation(self) -> Evaluation:
        """The evaluation on the held-out rows, computed on first access."""
        return self.evaluate()


def fit_best_candidate(job: TrainingJob, windows: Mapping[str, Windows]) -> Candidate:
    """Fit a model on each window, and select the one with the lowest loss on the held-out rows.

    Args:
        job: inputs of all candidates.
        windows: windows by name; all hold out the same dates.

    Raises:
        DataError: too few labelled rows.
        PerennialError: cuda was requested and there is none.
        WorkersUnavailableError: a worker did not connect.
        StepInterruptedError: a worker was lost.
    """
    best: Candidate | None = None
    with _optional_pool(job) as pool:
        for window_name, dates in windows.items():
            candidate = _fit(job, window_name, dates, pool)
            if best is None or candidate.evaluation.loss < best.evaluation.loss:
                best = candidate
    assert best is not None
    return best


@contextlib.contextmanager
def _optional_pool(job: TrainingJob) -> Iterator[WorkerPool | None]:
    """Open the worker pool of the job; None if this process fits the model."""
    if job.workers == 1:
        yield None
        return
    from perennial.training.dask_cluster import worker_pool

    with worker_pool(job.workers, job.rendezvous) as pool:
        yield pool


def _fit(job: TrainingJob, window_name: str, windows: Windows, pool: WorkerPool | None) -> Candidate:
    spec = job.source.spec
    data = _build_data(job, window_name, windows, pool)
    fitted = search.search_and_fit(spec, data, on_trial=job.on_trial, checkpoint=job.checkpoints[window_name])
    model = TrainedModel(fitted.booster, data.encoding, spec.task, data.classes)
    evaluate = partial(
        evaluate_challenger, job.source, windows, model, fit_baseline_models(spec, data), job.champion
    )
    return Candidate(window_name, windows, fitted, model, evaluate, data.head(5), data.fit_rows, data.rows)


def _build_data(
    job: TrainingJob, window_name: str, windows: Windows, pool: WorkerPool | None
) -> TrainingData:
    """Build the rows to fit on, in this process or on the workers."""
    spec, features = job.source.spec, job.source.features
    version, labels_version = job.source.version, job.source.labels_version
    if pool is None:
        folder = job.folder / window_name
        folder.mkdir()
        return build_dataset(spec, features, windows, folder, version, labels_version)
    from perennial.training import _distributed_dataset

    source = _distributed_dataset.DatasetRef(spec, features.reference_versions, version, labels_version)
    return _distributed_dataset.build_distributed_dataset(pool, source, windows, tuple(features.columns))
