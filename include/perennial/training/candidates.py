"""The candidates of a training, trees or a linear model for each window, and the selection of the best.

The window is selected on rows for early stopping that all windows have, as the parameters and the number of rounds are,
and not on the held-out rows, which the gate uses: a challenger no better than the champion would otherwise pass more
often than the confidence of its intervals says. Parameters are searched on the first window only.

Soon after a change, the few dates for early stopping cannot tell whether the time since it is the better window.
It is then selected on the held-out rows, and the gate's intervals are widened (`comparison.simultaneous_confidence`).

On data that a straight line fits best, the gate would refuse trees in every training, because they are clearly worse
than the linear baseline. So the linear model can be a candidate itself (``training.candidates``). Trees or linear is
decided on the held-out rows, and the gate's intervals are widened for it, too.

A challenger that passed the gate is fitted once more with the held-out rows (``training.refit``): otherwise no champion
would have learned from the latest partitions. This model is the one that is registered. The evidence stays that of the
model that was evaluated, which also stands for it wherever it would be judged on rows that it has learned.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perennial.core.errors import DataError
from perennial.features.engine import FeatureQuery
from perennial.modeling.comparison import Comparison, simultaneous_confidence
from perennial.modeling.registry import ModelVersion
from perennial.modeling.single_feature import suspicious_score
from perennial.modeling.trained_model import TrainedModel
from perennial.spec.model_spec import ModelSpec
from perennial.spec.sections import SearchSpec
from perennial.training import search
from perennial.training._baseline_models import (
    PENALTIES,
    RowSample,
    fit_baseline_models,
    fit_linear_model,
    sample_rows,
)
from perennial.training._dataset import TrainingData, build_dataset
from perennial.training.challenger_evaluation import (
    Evaluation,
    Predictor,
    TrainingSource,
    compare_losses,
    evaluate_challenger,
    losses_on,
)
from perennial.training.checkpoint import Checkpoint, SearchTrial
from perennial.training.search import FitResult
from perennial.training.windows import Windows, common_validation, refit_windows

if TYPE_CHECKING:
    from perennial.training.dask_cluster import WorkerPool

#: Most important features that are examined for a leak of the label.
LEAK_FEATURES = 20
#: Relative improvement of trees over a linear model below which they must be clearly better.
MIN_IMPROVEMENT = 0.01
_NO_LINEAR_MODEL = "a linear model cannot be fitted: one class is too rare"


@dataclass(frozen=True)
class TrainingJob:
    """The inputs that all candidates of a training share.

    Attributes:
        source: the data of the training.
        champion: the champion; None if there is none, or it cannot be compared with what is trained.
        folder: working folder.
        checkpoints: checkpoint by name of the window.
        on_trial: called with each search trial.
        workers: number of processes that fit a model together.
        rendezvous: URI of the file where workers that run elsewhere find this process; None: processes of this
            machine.
        not_compared: why the champion cannot be compared; empty otherwise.
    """

    source: TrainingSource
    champion: ModelVersion | None
    folder: Path
    checkpoints: Mapping[str, Checkpoint]
    on_trial: Callable[[SearchTrial], None]
    workers: int = 1
    rendezvous: str | None = None
    not_compared: str = ""


@dataclass(frozen=True)
class Refit:
    """What became of fitting the challenger once more, with the held-out rows.

    Attributes:
        windows: dates that it was fitted on.
        sentence: what was done, or why the evaluated model is registered instead.
        model: the model; None if the evaluated one is registered.
    """

    windows: Windows
    sentence: str
    model: TrainedModel | None = None


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
        validation_loss: loss on the rows for early stopping that all windows have, of the same model fitted without
            the rows for early stopping; NaN if windows are not compared on them.
        window_losses: the loss by which windows are compared, by their names.
        algorithm_losses: loss of the trees and of the linear model on the held-out rows, if both were fitted.
        suspected_leaks: features that predict the label almost perfectly alone, each with its score.
        refit: the same model fitted once more with the held-out rows; None if it was not to be.
        studies: results of `training.studies`, by the name of the file that a version has of them.
        share: about which share of the rows of its dates it was fitted on.
    """

    window_name: str
    windows: Windows
    fitted: FitResult
    model: TrainedModel
    evaluate: Callable[[], Evaluation]
    example: np.ndarray
    fit_rows: int
    rows: int
    validation_loss: float = float("nan")
    window_losses: dict[str, float] = field(default_factory=dict)
    algorithm_losses: dict[str, float] = field(default_factory=dict)
    suspected_leaks: dict[str, str] = field(default_factory=dict)
    refit: Refit | None = None
    studies: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0

    @property
    def registered_model(self) -> TrainedModel:
        """The model that is registered: the one fitted once more, or the one that was evaluated."""
        return self.refit.model if self.refit and self.refit.model else self.model

    @cached_property
    def evaluation(self) -> Evaluation:
        """The evaluation on the held-out rows, computed on first access."""
        return self.evaluate()

    @property
    def reasons(self) -> list[str]:
        """The gate's sentences, those on the choice between trees and a linear model, and on suspected leaks."""
        first, *others = self.evaluation.reasons
        notes = []
        if self.algorithm_losses:
            losses = ", ".join(f"{name} {loss:.4f}" for name, loss in self.algorithm_losses.items())
            chosen = {"trees": "the trees are", "linear": "the linear model is"}[self.model.algorithm]
            notes.append(f"ok: candidates {losses}: {chosen} the challenger")
        notes += [
            f"ok: feature {name!r} alone predicts the label almost perfectly ({score}): check that it is known when a "
            "prediction is made"
            for name, score in self.suspected_leaks.items()
        ]
        return [first, *notes, *others]


def fit_best_candidate(job: TrainingJob, windows: Mapping[str, Windows]) -> Candidate:
    """Fit a model on each window, and select one of them (`select_candidate`).

    Args:
        job: inputs of all candidates.
        windows: windows by name; all hold out the same dates.

    Raises:
        DataError: too few labelled rows.
        PerennialError: cuda was requested and there is none.
        WorkersUnavailableError: a worker did not connect.
        StepInterruptedError: a worker was lost.
    """
    losses: dict[str, float] = {}
    spec, after_change = job.source.spec, "since_change" in windows
    common = common_validation(windows) if len(windows) > 1 and not after_change else ()
    compared = len(spec.training.candidates) * (len(windows) if after_change else 1)
    confidence = simultaneous_confidence(spec.gate.confidence, compared)

    def fit_each(pool: WorkerPool | None) -> Iterator[Candidate]:
        params: Mapping[str, float] | None = None
        for window_name, dates in windows.items():
            candidate = _fit(job, window_name, dates, pool, common, params, confidence)
            if params is None and candidate.fitted.trials:
                params = min(candidate.fitted.trials, key=lambda t: (t.loss, t.number)).params
            if len(windows) > 1:
                losses[window_name] = _window_loss(candidate)
            yield candidate

    with _optional_pool(job) as pool:
        best = select_candidate(fit_each(pool))
        best.window_losses.update(losses)
        if spec.training.refit and best.evaluation.passed:
            evaluation = best.evaluation
            best = replace(best, refit=_refit(job, best, pool), evaluate=lambda: evaluation)
    return best


def select_candidate(candidates: Iterable[Candidate]) -> Candidate:
    """The candidate whose window has the lowest loss, the first of several; a single one is not evaluated."""
    best, *others = candidates
    return min([best, *others], key=_window_loss) if others else best


def _window_loss(candidate: Candidate) -> float:
    """The loss on rows for early stopping; on the held-out rows if windows are not compared on those."""
    loss = candidate.validation_loss
    return candidate.evaluation.loss if math.isnan(loss) else loss


def _refit(job: TrainingJob, challenger: Candidate, pool: WorkerPool | None) -> Refit:
    """Fit a challenger that passed the gate once more, with the held-out rows.

    Args:
        job: inputs of all candidates.
        challenger: the challenger.
        pool: workers that fit it; None if this process does.
    """
    spec = job.source.spec
    windows = refit_windows(spec, challenger.window_name, challenger.windows)
    for name in job.checkpoints:  # their rows are not read any more
        shutil.rmtree(job.folder / name, ignore_errors=True)
    try:
        data = _build_data(job, "refit", windows, pool)
    except DataError as error:
        return Refit(windows, f"Not fitted again with the held-out rows: {error.cause}")
    if data.classes != challenger.model.classes:
        return Refit(windows, "Not fitted again with the held-out rows, which have other classes")
    if challenger.model.design is None:
        booster = search.fit_again(data, challenger.fitted, job.checkpoints[challenger.window_name])
        model = TrainedModel(booster, data.encoding, spec.task, data.classes)
    else:
        linear = fit_linear_model(spec, data, PENALTIES)
        if linear is None:
            return Refit(windows, f"Not fitted again with the held-out rows: {_NO_LINEAR_MODEL}")
        model = linear
    held_out = challenger.windows.holdout
    old, new = (losses_on(job.source, challenger.windows, held_out, m) for m in (challenger.model, model))
    compared = compare_losses(spec, new, old)
    if compared.high < -spec.gate.margin:
        # It has learned these rows: then something is wrong with it.
        return Refit(
            windows,
            f"Fitted again with the held-out rows, it was worse on them: {spec.metric} {compared.loss:.4f} instead of "
            f"{compared.other:.4f}; the model that was evaluated is registered",
        )
    return Refit(windows, f"Fitted again on {windows.trained_range}, with the held-out rows", model)


def refitter(
    source: TrainingSource, candidate: Candidate, windows: Windows, folder: Path
) -> Callable[[Collection[str]], TrainedModel]:
    """Read rows, in this process, to fit the same model as a candidate on them.

    Args:
        source: the data of the training.
        candidate: whose parameters and rounds the models have.
        windows: dates of the rows.
        folder: where the encoded rows are written.

    Returns:
        A function that fits the model without the features that it is given.
    """
    spec = source.spec
    features = FeatureQuery(spec, source.features.reference_versions)
    rows = build_dataset(spec, features, windows, folder, source.version, source.labels_version)

    def fit(omitted: Collection[str]) -> TrainedModel:
        data = rows.without(omitted)
        if candidate.model.design is None:
            booster = search.fit_again(data, candidate.fitted, Checkpoint(None))
            return TrainedModel(booster, data.encoding, spec.task, data.classes)
        model = fit_linear_model(spec, data, PENALTIES)
        if model is None:
            raise DataError(_NO_LINEAR_MODEL, "add trees to training.candidates", model=spec.name)
        return model

    return fit


@contextlib.contextmanager
def _optional_pool(job: TrainingJob) -> Iterator[WorkerPool | None]:
    """Open the worker pool of the job; None if this process fits the model."""
    if job.workers == 1:
        yield None
        return
    from perennial.training.dask_cluster import worker_pool

    with worker_pool(job.workers, job.rendezvous) as pool:
        yield pool


def _fit(
    job: TrainingJob,
    window_name: str,
    windows: Windows,
    pool: WorkerPool | None,
    common: tuple[str, ...],
    params: Mapping[str, float] | None,
    confidence: float,
) -> Candidate:
    """Fit a model on one window.

    Args:
        job: inputs of all candidates.
        window_name: name of the window.
        windows: its dates.
        pool: workers that fit it; None if this process does.
        common: dates for early stopping on which the windows' models are compared; empty if there is one window.
        params: parameters that were searched on another window; None to search them.
        confidence: confidence of the gate's intervals.
    """
    spec = job.source.spec
    data = _build_data(job, window_name, windows, pool)
    algorithms = spec.training.candidates
    sample = data.sample(sample_rows(data))
    linear = fit_linear_model(spec, data, PENALTIES, sample) if "linear" in algorithms else None

    def make(fitted: FitResult, model: TrainedModel, baselines: Mapping[str, Predictor]) -> Candidate:
        source, compared = job.source, (job.champion, job.not_compared, confidence)
        evaluate = partial(evaluate_challenger, source, windows, model, baselines, *compared)
        loss = float("nan")
        if common:
            validated = _validated_model(spec, data, fitted, model, sample)
            losses = losses_on(source, windows, common, validated)
            loss = float(losses.mean()) if len(losses) else math.inf
        example = _example(spec, data)
        facts = (example, data.fit_rows, data.rows, loss)
        candidate = Candidate(window_name, windows, fitted, model, evaluate, *facts, share=data.share)
        candidate.suspected_leaks.update(suspected_leaks(spec, model, *sample))
        return candidate

    if "trees" not in algorithms:
        if linear is None:
            raise DataError(_NO_LINEAR_MODEL, "add trees to training.candidates", model=spec.name)
        fitted = FitResult(linear.booster, "cpu", _LINEAR_PARAMETERS, 1, external_memory=False)
        return make(fitted, linear, fit_baseline_models(spec, data, linear, sample))
    searched = spec if params is None else _with_parameters(spec, params)
    checkpoint, validate = job.checkpoints[window_name], bool(common)
    fitted = search.search_and_fit(
        searched, data, on_trial=job.on_trial, checkpoint=checkpoint, validate=validate
    )
    baselines = fit_baseline_models(spec, data, linear, sample)
    trees = make(fitted, TrainedModel(fitted.booster, data.encoding, spec.task, data.classes), baselines)
    if linear is None:
        return trees
    compared = trees.evaluation.against_baselines["linear"]
    fitted = replace(fitted, booster=linear.booster, params=_LINEAR_PARAMETERS, rounds=1, best_trial=None)
    best = select_algorithm(trees, make(fitted, linear, baselines))
    best.algorithm_losses.update(trees=compared.loss, linear=compared.other)
    return best


def _with_parameters(spec: ModelSpec, params: Mapping[str, float]) -> ModelSpec:
    """The spec with parameters that were searched before, so that they are not searched again."""
    searched = {"params": spec.training.params | dict(params), "search": SearchSpec()}
    return spec.model_copy(update={"training": spec.training.model_copy(update=searched)})


def _validated_model(
    spec: ModelSpec, data: TrainingData, fitted: FitResult, model: TrainedModel, sample: RowSample
) -> TrainedModel:
    """A model like the given one, fitted without the rows for early stopping.

    Raises:
        DataError: the rows to fit on have one class only.
    """
    if model.design is None:
        assert fitted.validated is not None
        return replace(model, booster=fitted.validated)
    x, y = sample
    rows = max(1, len(x) * data.fit_rows // data.rows)
    return fit_linear_model(spec, data, sample=(x[:rows], y[:rows])) or model


def suspected_leaks(spec: ModelSpec, model: TrainedModel, x: np.ndarray, y: np.ndarray) -> dict[str, str]:
    """The features that predict the label almost perfectly alone, with their scores.

    Args:
        spec: the model.
        model: its `LEAK_FEATURES` most important features are examined.
        x: encoded rows, shape (rows, columns).
        y: labels, shape (rows,).
    """
    importance = model.importance()
    columns = sorted(range(x.shape[1]), key=lambda j: -importance[model.encoding.columns[j]])[:LEAK_FEATURES]
    scores = {}
    for j in columns:
        name = model.encoding.columns[j]
        categorical = name in model.encoding.categories
        scores[name] = suspicious_score(x[:, j].astype(np.float64), y, spec.task, categorical=categorical)
    return {name: score for name, score in scores.items() if score}


#: What is recorded as the parameters of a linear model.
_LINEAR_PARAMETERS = {"booster": "gblinear"}


def select_algorithm(trees: Candidate, linear: Candidate) -> Candidate:
    """The linear model if it is preferred, unless only the trees pass the gate, whose confidence allows for that."""
    if not prefers_linear(trees.evaluation.against_baselines["linear"]):
        return trees
    return trees if trees.evaluation.passed and not linear.evaluation.passed else linear


def prefers_linear(trees: Comparison) -> bool:
    """Whether the linear model is the better choice, because it is simpler: unless trees are clearly better, or by 1%.

    Args:
        trees: the comparison of the trees with the linear model on the held-out rows.
    """
    return trees.low <= 0 and trees.improvement < MIN_IMPROVEMENT


def _example(spec: ModelSpec, data: TrainingData) -> np.ndarray:
    """A few encoded rows, which MLflow stores; features of personal data have no value in them."""
    rows = data.head(5).copy()
    rows[:, [j for j, name in enumerate(data.encoding.columns) if name in spec.features.personal]] = np.nan
    return rows


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
