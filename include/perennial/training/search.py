"""The hyperparameter search within its budget, and the final fit with the best parameters."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from perennial.core.errors import PerennialError
from perennial.core.progress import Progress
from perennial.core.settings import settings
from perennial.modeling.metrics import EVAL_METRICS
from perennial.spec.constraints import INTEGER_PARAMETERS, direction
from perennial.spec.model_spec import ModelSpec
from perennial.training._boosting import (
    DEFAULT_BINS,
    cast_integers,
    common_device,
    curve_rounds,
    mean_curve,
    resolve_device,
    stopping_cuts,
    xgboost_parameters,
)
from perennial.training._dataset import Binning, TrainingData
from perennial.training._gpu_monitor import GpuReport as GpuReport
from perennial.training._gpu_monitor import combine_reports
from perennial.training.checkpoint import Checkpoint, SearchTrial, search_trial_name

if TYPE_CHECKING:
    import optuna
    import xgboost

    from perennial.spec.sections import SearchRange

log = logging.getLogger("perennial")

#: Categories of a feature from which trees may divide them into groups: an order of fewer needs few splits.
MIN_GROUPED_CATEGORIES = 10
#: Relative improvement of the loss by groups of categories below which their order is used: it predicts faster.
MIN_GROUPING_GAIN = 0.01
#: Search trials that Optuna's TPE sampler draws at random before it uses results (its default).
N_STARTUP_TRIALS = 10


@dataclass
class FitResult:
    """The result of a search and the final fit.

    Attributes:
        booster: the fitted booster.
        validated: one with the same parameters and rounds, fitted without the rows for early stopping, if asked for.
        device: device that it was trained on: ``cpu`` or ``cuda``.
        params: XGBoost parameters of the final fit.
        rounds: boosting rounds of the final fit.
        external_memory: whether the binned matrix was on disk.
        trials: search trials.
        best_trial: the trial whose parameters and rounds the final fit has; None for a model without a search.
        search_end: what ended the search before its last trial: ``budget``, or ``minutes``; empty if nothing did.
        resumed_rounds: rounds from the checkpoint of an interrupted training.
        gpu: use of the GPUs; None without a GPU.
    """

    booster: xgboost.Booster
    device: str
    params: dict[str, Any]
    rounds: int
    external_memory: bool
    trials: list[SearchTrial] = field(default_factory=list)
    best_trial: SearchTrial | None = None
    search_end: str = ""
    resumed_rounds: int = 0
    gpu: GpuReport | None = None
    validated: xgboost.Booster | None = None


def search_and_fit(
    spec: ModelSpec,
    data: TrainingData,
    *,
    on_trial: Callable[[SearchTrial], None] = lambda _: None,
    checkpoint: Checkpoint | None = None,
    validate: bool = False,
) -> FitResult:
    """Search within the budget, then fit on all rows with the best trial's parameters and rounds.

    With ``training.early_stopping_cuts`` they are those of `_choose_on_cuts`.

    Args:
        spec: the model.
        data: the rows.
        on_trial: called with each search trial in order, including those of an interrupted training.
        checkpoint: checkpoint of a training with the same rows and spec.
        validate: also fit without the rows for early stopping, with the same parameters and rounds.

    Raises:
        PerennialError: cuda was requested and there is none.
    """
    validated = None
    device = common_device(data.run_everywhere(resolve_device, spec.training.device))
    checkpoint = checkpoint or Checkpoint(None)
    base = xgboost_parameters(spec, device, len(data.classes), len(data.encoding.columns))
    external = not data.fits_in_memory()
    binning = Binning(int(base.get("max_bin", DEFAULT_BINS)), settings().threads, external)
    with data.monitor_gpus(device == "cuda") as gpu_reports:
        search = _run_trials(spec, data, base, binning, on_trial, checkpoint)
        best, rounds = _choose_on_cuts(spec, data, base, binning, search, checkpoint)
        params = base | cast_integers(best.params)
        binning = replace(binning, group_categories=best.group_categories)
        if validate:
            train = data.dmatrix(0, data.fit_rows, binning)
            validated, _ = data.boost(f"fit of {best.name}", params, train, rounds, checkpoint)
            del train
        # Named after the best trial, which may be another one in a resumed search.
        name = f"last fit of {best.name}"
        booster, _ = data.boost(name, params, data.dmatrix(0, data.rows, binning), rounds, checkpoint)
    trained_on = data.ran_on(booster)
    if trained_on != device:
        raise PerennialError(
            f"training began on {device} and ended on {trained_on}", "check the GPU; then train again"
        )
    return FitResult(
        booster,
        device,
        params,
        rounds,
        external,
        search.trials,
        best,
        search.end,
        checkpoint.resumed,
        combine_reports(gpu_reports),
        validated,
    )


def _choose_on_cuts(
    spec: ModelSpec,
    data: TrainingData,
    base: dict[str, Any],
    binning: Binning,
    search: _SearchResult,
    checkpoint: Checkpoint,
) -> tuple[SearchTrial, int]:
    """The trial that the model is fitted like, and the number of rounds.

    With several cuts, each with rows to fit on and later ones to stop on, the rounds are the best ones on average.
    The best trial is compared with the first one, which has the spec's parameters: the latest rows alone may be unlike
    those that follow. In the coldest month so far, a constant is the best model, and any parameters are as good.

    Args:
        spec: the model; with one cut, the best trial and its rounds are used.
        data: the rows.
        base: parameters of all trials.
        binning: how the rows are binned.
        search: the search trials.
        checkpoint: checkpoint of the training.
    """
    best = _best_trial(search.trials)
    if spec.training.early_stopping_cuts == 1:
        return best, best.rounds
    first = min(search.trials, key=lambda t: t.number)
    chosen, rounds, lowest = best, best.rounds, math.inf
    compared = [best, *([first] if first.params != best.params else [])]
    curves = _boost_on_cuts(spec, data, base, binning, compared, search.losses, checkpoint)
    for trial in compared:
        means = mean_curve(curves[trial.number])
        if means and min(means) < lowest:
            chosen, rounds, lowest = trial, means.index(min(means)) + 1, min(means)
    return chosen, rounds


def _boost_on_cuts(
    spec: ModelSpec,
    data: TrainingData,
    base: dict[str, Any],
    binning: Binning,
    trials: list[SearchTrial],
    losses: Mapping[int, list[float]],
    checkpoint: Checkpoint,
) -> dict[int, list[list[float]]]:
    """The loss by round on the rows after each cut, with the parameters of each trial, by its number.

    The last cut is that of the search: what a trial has in ``losses`` is not boosted again.
    """
    maximize = direction(EVAL_METRICS[spec.task, spec.metric]) == "higher"
    curves: dict[int, list[list[float]]] = {trial.number: [] for trial in trials}
    for i, (cut, end) in enumerate(_cuts(spec, data), 1):
        matrices: dict[bool, tuple[Any, Any]] = {}
        for trial in trials:
            metrics = losses.get(trial.number) if (cut, end) == (data.fit_rows, data.rows) else None
            if metrics is None:
                grouped = trial.group_categories
                if grouped not in matrices:
                    matrices.clear()  # before others are made
                    matrices[grouped] = _matrices(data, cut, end, replace(binning, group_categories=grouped))
                _, metrics = data.boost(
                    f"cut {i} of {trial.name}", base | cast_integers(trial.params), matrices[grouped][0],
                    spec.training.rounds, checkpoint, valid=matrices[grouped][1],
                    patience=spec.training.early_stopping_rounds, maximize=maximize,
                )  # fmt: skip
            curves[trial.number].append([-value for value in metrics] if maximize else metrics)
    return curves


def _cuts(spec: ModelSpec, data: TrainingData) -> list[tuple[int, int]]:
    return stopping_cuts(data.fit_rows, data.rows, spec.training.early_stopping_cuts, data.boundary)


def _matrices(data: TrainingData, cut: int, end: int, binning: Binning) -> tuple[Any, Any]:
    """The binned rows before a cut, and those from it to an end."""
    train = data.dmatrix(0, cut, binning)
    return train, data.dmatrix(cut, end, binning, ref=train)


def fit_again(data: TrainingData, fitted: FitResult, checkpoint: Checkpoint) -> xgboost.Booster:
    """Fit on other rows of the same columns and classes, with the parameters and rounds of an earlier fit.

    Args:
        data: the rows.
        fitted: the earlier fit.
        checkpoint: checkpoint of the training.
    """
    max_bin = int(fitted.params.get("max_bin", DEFAULT_BINS))
    best = fitted.best_trial
    binning = Binning(
        max_bin, settings().threads, not data.fits_in_memory(), bool(best and best.group_categories)
    )
    rows = data.dmatrix(0, data.rows, binning)
    name = f"refit of {best.name}" if best else "refit"
    return data.boost(name, fitted.params, rows, fitted.rounds, checkpoint)[0]


class _SearchResult(NamedTuple):
    """The search trials, the metric by round of those that were boosted here, by number, and what ended the search."""

    trials: list[SearchTrial]
    losses: dict[int, list[float]]
    end: str


class _TrialRunner:
    """Boosts search trials, in parallel if memory and threads allow.

    Attributes:
        parallel: number of parallel trials; each has separate matrices.
        losses: metric by round of each trial that it boosted, by number.
    """

    def __init__(
        self,
        spec: ModelSpec,
        data: TrainingData,
        base: dict[str, Any],
        binning: Binning,
        checkpoint: Checkpoint,
    ) -> None:
        self._spec, self._data, self._base, self._checkpoint = spec, data, base, checkpoint
        one_by_one = base["device"] != "cpu" or binning.external
        startup_trials = min(spec.training.search.trials, N_STARTUP_TRIALS)
        self.parallel = 1 if one_by_one else data.max_parallel_trials(startup_trials, binning.max_bin)
        self._threads = binning.threads
        self._threads_each = max(1, binning.threads // self.parallel)
        self._binning = replace(binning, threads=self._threads_each)
        self._matrices = SimpleQueue[tuple[Any, Any]]()
        self._million_cells = data.fit_rows * len(data.encoding.columns) * max(1, len(data.classes)) / 1e6
        self.losses: dict[int, list[float]] = {}
        self._costs: dict[int, float] = {}
        self._seconds: dict[int, float] = {}
        self._cut_share = sum(cut for cut, _ in _cuts(spec, data)[:-1]) / max(1, data.fit_rows)

    @property
    def seconds_spent(self) -> float:
        """Seconds that an interrupted search took; its startup trials ran in parallel, too."""
        return sum(map(self._seconds_of, self._checkpoint.trials))

    def _seconds_of(self, trial: SearchTrial) -> float:
        return trial.seconds / (self.parallel if trial.number < N_STARTUP_TRIALS else 1)

    def _on_cuts(self, number: int, costs: Mapping[int, float]) -> float:
        """At most what it costs to compare two of the trials before one on the cuts but the last.

        It never falls when another trial ends: a trial that began in vain is left out whatever ran beside it.
        """
        return self._cut_share * sum(sorted(cost for n, cost in [*costs.items()] if n < number)[-2:])

    def seconds_on_cuts(self, number: int) -> float:
        """Seconds that the cuts take, if the search ends before a trial."""
        return self._on_cuts(number, self._seconds)

    def group_categories(self) -> None:
        """Bin the rows again, for one trial whose trees divide categories into groups."""
        self._matrices = SimpleQueue[tuple[Any, Any]]()  # frees the others
        self._threads_each = self._threads
        self._binning = replace(self._binning, threads=self._threads, group_categories=True)
        self.make_matrices()

    def make_matrices(self) -> None:
        """Bin the rows, for one trial at a time."""
        self._matrices.put(_matrices(self._data, self._data.fit_rows, self._data.rows, self._binning))

    def is_spent(self, number: int) -> bool:
        """Whether the finished trials before one, and the cuts, use up the budget, whatever ran beside them."""
        budget = self._spec.training.search.budget
        spent = sum(cost for earlier, cost in [*self._costs.items()] if earlier < number)
        return budget is not None and spent + self._on_cuts(number, self._costs) >= budget

    def finished(self, number: int, params: dict[str, float]) -> SearchTrial | None:
        """The trial if an interrupted training has finished it; else None."""
        trial = self._checkpoint.find_trial(number, params)
        if trial:
            self.losses.pop(number, None)  # of a trial that was left out, whose number this one has
            self._count(trial)
        return trial

    def _count(self, trial: SearchTrial) -> None:
        self._costs[trial.number] = self._million_cells * max(trial.boosted, trial.rounds)
        self._seconds[trial.number] = self._seconds_of(trial)

    def run(self, number: int, params: dict[str, float]) -> SearchTrial:
        """Boost one trial, with early stopping on the validation rows."""
        started = time.monotonic()
        training = self._spec.training
        maximize = direction(EVAL_METRICS[self._spec.task, self._spec.metric]) == "higher"
        threads = self._threads_each if number < N_STARTUP_TRIALS else self._threads
        matrices = train, valid = self._matrices.get()
        train_losses: dict[int, float] = {}
        try:
            _, losses = self._data.boost(
                search_trial_name(number),
                self._base | {"nthread": threads} | cast_integers(params),
                train,
                training.rounds,
                self._checkpoint,
                valid=valid,
                patience=training.early_stopping_rounds,
                maximize=maximize,
                train_losses=train_losses,
            )
        finally:
            self._matrices.put(matrices)
        best = max(losses) if maximize else min(losses)
        seconds = round(time.monotonic() - started, 3)
        curve = tuple(
            (n, train_losses.get(n), losses[n - 1]) for n in curve_rounds(training.rounds) if n <= len(losses)
        )
        trial = SearchTrial(
            number, params, -best if maximize else best, losses.index(best) + 1, seconds, curve, len(losses),
            self._binning.group_categories,
        )  # fmt: skip
        self.losses[number] = losses
        self._count(trial)
        self._checkpoint.add_trial(trial)
        return trial


def _run_trials(
    spec: ModelSpec,
    data: TrainingData,
    base: dict[str, Any],
    binning: Binning,
    on_trial: Callable[[SearchTrial], None],
    checkpoint: Checkpoint,
) -> _SearchResult:
    """Run all search trials. Their matrices are freed before the final fit."""
    runner, search_end = _TrialRunner(spec, data, base, binning, checkpoint), ""
    trials: list[SearchTrial] = []
    progress, wanted = Progress(), max(1, spec.training.search.trials)

    def record(trial: SearchTrial) -> None:
        trials.append(trial)
        on_trial(trial)
        best = min(t.loss for t in trials)
        progress.report("Search: %d of at most %d trials, the best loss %.6g", len(trials), wanted, best)

    if runner.parallel == 1:
        runner.make_matrices()
        if spec.training.search.trials:
            search_end = _search(spec, runner, map, record)
        else:
            record(runner.finished(0, {}) or runner.run(0, {}))
        _try_groups(spec, data, runner, trials, record)
        return _SearchResult(trials, runner.losses, search_end)
    with ThreadPoolExecutor(runner.parallel, thread_name_prefix="trial") as pool:
        try:
            list(pool.map(lambda _: runner.make_matrices(), range(runner.parallel)))
            search_end = _search(spec, runner, pool.map, record)
        except BaseException:  # do not wait for trials whose results are not needed any more
            checkpoint.halted = True
            raise
    _try_groups(spec, data, runner, trials, record)
    return _SearchResult(trials, runner.losses, search_end)


def _try_groups(
    spec: ModelSpec,
    data: TrainingData,
    runner: _TrialRunner,
    trials: list[SearchTrial],
    record: Callable[[SearchTrial], None],
) -> None:
    """One more trial, with the best parameters, whose trees divide categories into groups: if that may be better."""
    most = max(map(len, data.encoding.categories.values()), default=0)
    if spec.features.category_order != "search" or most < MIN_GROUPED_CATEGORIES:
        return
    best, number = _best_trial(trials), max(t.number for t in trials) + 1
    if (finished := runner.finished(number, best.params)) is None:
        runner.group_categories()
        finished = runner.run(number, best.params)
    record(finished)


def _best_trial(trials: list[SearchTrial]) -> SearchTrial:
    """The trial with the lowest loss, the first of several; one with groups of categories if it is better by 1%."""
    best = min((t for t in trials if not t.group_categories), key=lambda t: (t.loss, t.number))
    grouped = [t for t in trials if t.group_categories]
    return next((t for t in grouped if t.loss < best.loss - MIN_GROUPING_GAIN * abs(best.loss)), best)


def _search(
    spec: ModelSpec,
    runner: _TrialRunner,
    map_trials: Callable[..., Iterator[SearchTrial | None]],
    record: Callable[[SearchTrial], None],
) -> str:
    """Let Optuna choose the parameters of the search trials, within the budget.

    Optuna draws the startup trials before it uses any result, so that they can run in parallel with the same results.
    A trial counts if those before it leave something of the budget; one that ran beside them in vain is left out.

    Args:
        spec: the model.
        runner: runs the trials.
        map_trials: ``map``, or a parallel version of it.
        record: called with each trial, in order.

    Returns:
        What ended the search before its last trial: ``budget``, ``minutes``, or nothing.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search, params = spec.training.search, spec.training.params
    sampler = optuna.samplers.TPESampler(seed=spec.training.seed, n_startup_trials=N_STARTUP_TRIALS)
    study = optuna.create_study(sampler=sampler)
    in_space = {k: v for k, v in params.items() if k in search.space and search.space[k].contains(v)}
    if len(in_space) == len(search.space):
        study.enqueue_trial(in_space)  # the spec's parameters come first: the search can only improve on them
    end = time.monotonic() + max(1.0, search.minutes * 60 - runner.seconds_spent)

    def run(trial: optuna.Trial, params: dict[str, float]) -> SearchTrial | None:
        out_of_time = trial.number > 0 and time.monotonic() + runner.seconds_on_cuts(trial.number) >= end
        finished = runner.finished(trial.number, params)
        if finished or out_of_time or runner.is_spent(trial.number):
            return finished
        return runner.run(trial.number, params)

    for count in (min(N_STARTUP_TRIALS, search.trials), *[1] * (search.trials - N_STARTUP_TRIALS)):
        drawn = [study.ask() for _ in range(count)]
        params_by_trial = [_draw_params(trial, search.space) for trial in drawn]
        search_end = ""
        for trial, result in zip(drawn, map_trials(run, drawn, params_by_trial), strict=True):
            if search_end or result is None or runner.is_spent(trial.number):
                search_end = search_end or ("budget" if runner.is_spent(trial.number) else "minutes")
                continue
            study.tell(trial, result.loss)
            record(result)
        if search_end == "minutes":
            log.warning(
                "The search ended after %g minutes, before its last trial: on a machine with another load it would end "
                "elsewhere. Lower training.search.trials or budget, or raise training.search.minutes.", search.minutes,
            )  # fmt: skip
        if search_end:
            return search_end
    return ""


def _draw_params(trial: optuna.Trial, space: Mapping[str, SearchRange]) -> dict[str, float]:
    params: dict[str, float] = {}
    for name, values in space.items():
        if values.choices:
            params[name] = float(trial.suggest_categorical(name, values.choices))
        elif name in INTEGER_PARAMETERS:
            params[name] = trial.suggest_int(
                name, int(values.low or 0), int(values.high or 0), log=values.log
            )
        else:
            params[name] = trial.suggest_float(name, values.low or 0, values.high or 0, log=values.log)
    return params
