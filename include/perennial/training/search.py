"""Fits boosters: which device really runs, the search within its budget, the last fit, the simple baselines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from perennial.core.errors import PerennialError
from perennial.core.settings import settings
from perennial.modeling.metrics import EVAL_METRICS
from perennial.spec.constraints import INTEGER_PARAMETERS
from perennial.spec.model_spec import ModelSpec
from perennial.training import _gpu_monitor, gpu_monitor
from perennial.training._boosting import ran_on
from perennial.training._dataset import Binning
from perennial.training.checkpoint import Checkpoint, Trial, trial_name

if TYPE_CHECKING:
    import optuna
    import xgboost

    from perennial.spec.sections import SearchRange
    from perennial.training._dataset import Dataset
    from perennial.training._distributed_dataset import DistributedDataset

#: Trials that Optuna's TPE draws at random, before it learns from results (its own default).
N_STARTUP_TRIALS = 10


@dataclass
class FitResult:
    """The outcome of a search and the last fit.

    Attributes:
        resumed: rounds that an interrupted training had done before.
        gpu: what the GPU did meanwhile (`gpu_monitor.combine_reports`); None where there is none.
    """

    booster: xgboost.Booster
    device: str
    params: dict[str, Any]
    rounds: int
    external: bool
    trials: list[Trial] = field(default_factory=list)
    resumed: int = 0
    gpu: dict[str, Any] | None = None


def resolve_device(asked: str) -> str:
    """The device XGBoost really uses when ``asked`` for one: ``cpu`` or ``cuda``.

    Raises:
        PerennialError: cuda was asked for and there is none. Training never falls back unnoticed.
    """
    import numpy as np
    import xgboost

    if asked == "cpu":
        return "cpu"
    with xgboost.config_context(verbosity=0):
        probe = xgboost.train(
            {"device": "cuda", "max_depth": 1, "verbosity": 0},
            xgboost.DMatrix(np.zeros((2, 1), np.float32), label=[0, 1]),
            1,
        )
    found = ran_on(probe)
    if asked == "cuda" and found != "cuda":
        raise PerennialError(
            "training.device is cuda, but XGBoost found no GPU and would have used the CPU",
            "run it where there is a GPU, or set training.device to auto or cpu",
        )
    return found


def _device(data: Dataset | DistributedDataset, asked: str) -> str:
    found = sorted(set(data.ask(resolve_device, asked)))
    if len(found) > 1:
        raise PerennialError(
            f"some workers have a GPU and some have none ({', '.join(found)})",
            "give all of them one in the compute profile, or set training.device to cpu",
        )
    return str(found[0])


def xgboost_parameters(spec: ModelSpec, device: str, classes: int) -> dict[str, Any]:
    """XGBoost's parameters, without those of the search."""
    values: dict[str, Any] = {
        "objective": spec.objective,
        "eval_metric": EVAL_METRICS[(spec.task, spec.metric)],
        "tree_method": "hist",
        "device": device,
        "seed": spec.training.seed,
        "nthread": settings().threads,
        "verbosity": 0,
    }
    if spec.task == "multiclass":
        values["num_class"] = classes
    return values | _typed(spec.training.params)


def _typed(params: dict[str, float]) -> dict[str, float]:
    return {k: int(v) if k in INTEGER_PARAMETERS else v for k, v in params.items()}


def search_and_fit(
    spec: ModelSpec,
    data: Dataset | DistributedDataset,
    *,
    on_trial: Callable[[Trial], None] = lambda _: None,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """Search within the budget, then fit on all training rows with the best parameters and its number of rounds.

    Args:
        on_trial: told of each trial, those of an interrupted training included.
        checkpoint: where an interrupted training of the same rows by the same spec left what it had.

    Raises:
        PerennialError: cuda was asked for and there is none.
    """
    where = _device(data, spec.training.device)
    checkpoint = checkpoint or Checkpoint(None)
    base = xgboost_parameters(spec, where, len(data.classes))
    how = Binning(int(base.get("max_bin", 256)), settings().threads, external=not data.fits())
    with _gpu_monitor.watched(data.ask, where == "cuda") as reports:
        trials = _trials(spec, data, base, how, on_trial, checkpoint)
        best = min(trials, key=lambda t: (t.loss, t.number))
        params = base | _typed(best.params)
        # Named after its trial: where a search goes on, another may turn out best.
        name = f"last fit of {best.name}"
        booster, _ = data.boost(name, params, data.dmatrix(0, data.rows, how), best.rounds, checkpoint)
    ran = data.ran_on(booster)
    if ran != where:
        raise PerennialError(
            f"training began on {where} and ended on {ran}", "check the GPU; then train again"
        )
    return FitResult(
        booster,
        ran,
        params,
        best.rounds,
        how.external,
        trials,
        checkpoint.resumed,
        gpu_monitor.combine_reports(reports),
    )


def _trials(
    spec: ModelSpec,
    data: Dataset | DistributedDataset,
    base: dict[str, Any],
    how: Binning,
    on_trial: Callable[[Trial], None],
    checkpoint: Checkpoint,
) -> list[Trial]:
    """Every trial of the search, each stopped by the validation rows. Its matrices are gone before the last fit."""
    alone = base["device"] != "cpu" or how.external
    abreast = 1 if alone else data.abreast(min(spec.training.search.trials, N_STARTUP_TRIALS))
    share = max(1, how.threads // abreast)
    free = SimpleQueue[tuple[Any, Any]]()

    def prepare(_: int) -> None:
        train = data.dmatrix(0, data.fit, replace(how, threads=share))
        free.put((train, data.dmatrix(data.fit, data.rows, replace(how, threads=share), ref=train)))

    ranking = spec.task == "ranking"
    # Of an interrupted search: its blind trials ran side by side too.
    spent = sum(t.seconds / (abreast if t.number < N_STARTUP_TRIALS else 1) for t in checkpoint.trials)

    def run(number: int, chosen: dict[str, float], late: bool) -> Trial | None:
        return checkpoint.trial(number, chosen) or (None if late else fresh(number, chosen))

    def fresh(number: int, chosen: dict[str, float]) -> Trial:
        started = time.monotonic()
        matrices = train, valid = free.get()
        try:
            _, losses = data.boost(
                trial_name(number),
                base | {"nthread": share if number < N_STARTUP_TRIALS else how.threads} | _typed(chosen),
                train, spec.training.rounds, checkpoint,
                valid=valid, patience=spec.training.early_stopping_rounds, maximize=ranking,
            )  # fmt: skip
        finally:
            free.put(matrices)
        best = max(losses) if ranking else min(losses)
        seconds = round(time.monotonic() - started, 3)
        trial = Trial(number, chosen, -best if ranking else best, losses.index(best) + 1, seconds)
        checkpoint.add(trial)
        return trial

    trials: list[Trial] = []

    def done(trial: Trial) -> None:
        trials.append(trial)
        on_trial(trial)

    if abreast == 1:
        prepare(0)
    if not spec.training.search.trials:
        done(checkpoint.trial(0, {}) or fresh(0, {}))
    elif abreast == 1:
        _search(spec, map, run, done, spent)
    else:
        with ThreadPoolExecutor(abreast, thread_name_prefix="trial") as pool:
            try:
                list(pool.map(prepare, range(abreast)))
                _search(spec, pool.map, run, done, spent)
            except BaseException:  # nothing waits for trials that nobody needs
                checkpoint.halted = True
                raise
    return trials


def _search(
    spec: ModelSpec,
    each: Callable[..., Iterator[Trial | None]],
    run: Callable[[int, dict[str, float], bool], Trial | None],
    done: Callable[[Trial], None],
    spent: float,
) -> None:
    """Let Optuna choose; ``spent`` seconds of the budget are gone.

    It draws the first trials before it looks at any result: they run side by side, and are the same as one by one.

    Args:
        each: ``map``, or one that calls side by side.
        run: makes a trial; where it is told that time is over, only one that was done before.
        done: told of each trial, in their order.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = spec.training.search
    sampler = optuna.samplers.TPESampler(seed=spec.training.seed, n_startup_trials=N_STARTUP_TRIALS)
    study = optuna.create_study(sampler=sampler)
    given = {k: v for k, v in spec.training.params.items() if k in search.space and search.space[k].contains(v)}
    if len(given) == len(search.space):
        study.enqueue_trial(given)  # what the spec says is tried first: the search can only do better
    end = time.monotonic() + max(1.0, search.minutes * 60 - spent)

    def within(trial: optuna.Trial, chosen: dict[str, float]) -> Trial | None:
        return run(trial.number, chosen, trial.number > 0 and time.monotonic() >= end)

    for count in (min(N_STARTUP_TRIALS, search.trials), *[1] * (search.trials - N_STARTUP_TRIALS)):
        asked = [study.ask() for _ in range(count)]
        chosen = [_chosen(trial, search.space) for trial in asked]
        late = False
        for trial, found in zip(asked, each(within, asked, chosen), strict=True):
            if found is None:
                late = True
                continue
            study.tell(trial, found.loss)
            done(found)
        if late:
            return


def _chosen(trial: optuna.Trial, space: Mapping[str, SearchRange]) -> dict[str, float]:
    chosen: dict[str, float] = {}
    for name, item in space.items():
        if item.choices:
            chosen[name] = float(trial.suggest_categorical(name, item.choices))
        elif name in INTEGER_PARAMETERS:
            chosen[name] = trial.suggest_int(name, int(item.low or 0), int(item.high or 0), log=item.log)
        else:
            chosen[name] = trial.suggest_float(name, item.low or 0, item.high or 0, log=item.log)
    return chosen
