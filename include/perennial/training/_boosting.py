"""Boosting round by round, so that an interrupted training can continue.

A checkpoint in the lake holds the finished search trials and the unfinished boosters; a resumed search replays the
finished trials. Without sampling of rows or columns, the resumed booster is byte-identical to that of an uninterrupted
training. With sampling, rounds after the interruption draw other rows and columns, which is equivalent: XGBoost
does not save the state of its random generators, and a seed for each round (``seed_per_iteration``, or the parameter
set again) does not restore it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from perennial.core.errors import PerennialError, StepInterruptedError
from perennial.core.progress import Progress
from perennial.core.settings import settings
from perennial.modeling.metrics import EVAL_METRICS
from perennial.spec.constraints import INTEGER_PARAMETERS
from perennial.spec.model_spec import ModelSpec
from perennial.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    import xgboost

#: Most points of a learning curve.
MAX_CURVE_POINTS = 50
#: XGBoost's default of ``max_bin``, and the fewest bins of a column of a very wide table.
DEFAULT_BINS, _MIN_BINS = 256, 32
#: Most cells, columns times bins, of the histogram of a tree's node, unless ``max_bin`` is set: with more columns, each
#: has fewer bins.
MAX_HISTOGRAM_CELLS = 128_000
#: A cell has the sums of first and second derivatives.
_BYTES_PER_HISTOGRAM_CELL = 16
#: Columns from which the histograms of all nodes of a deep tree would need more memory than the rows.
WIDE_TABLE = 250
#: Memory of the histograms that are kept for the next level of a tree of a wide table, in bytes: the others are counted
#: again. XGBoost keeps those of all nodes.
_HISTOGRAM_CACHE = 128 * 2**20
#: Nodes of a level of a tree of depth 8, whose histograms XGBoost holds at the same time.
_NODES_OF_LEVEL = 128


def histogram_parameters(columns: int, max_bin: int | None) -> dict[str, int]:
    """XGBoost parameters that bound the memory of the histograms of wide tables; none for other tables.

    They depend on the number of columns only, so that a model does not depend on the memory of the machine.

    Args:
        columns: number of columns.
        max_bin: most bins of a column, if the spec sets it.
    """
    if columns <= WIDE_TABLE:
        return {}
    bins = max_bin or max(_MIN_BINS, min(DEFAULT_BINS, MAX_HISTOGRAM_CELLS // columns))
    cached_nodes = max(1, _HISTOGRAM_CACHE // (columns * bins * _BYTES_PER_HISTOGRAM_CELL))
    return {"max_bin": bins, "max_cached_hist_node": cached_nodes}


def xgboost_parameters(spec: ModelSpec, device: str, classes: int, columns: int) -> dict[str, Any]:
    """Compose XGBoost's parameters, without those of the search.

    Args:
        spec: the model.
        device: ``cpu`` or ``cuda``.
        classes: multiclass only: number of classes.
        columns: number of columns of the encoded rows.
    """
    params: dict[str, Any] = {
        "objective": spec.objective,
        "eval_metric": EVAL_METRICS[(spec.task, spec.metric)],
        "tree_method": "hist",
        "device": device,
        "seed": spec.training.seed,
        "nthread": settings().threads,
        "verbosity": 0,
    }
    if spec.task == "multiclass":
        params["num_class"] = classes
    given = cast_integers(spec.training.params)
    max_bin = given.get("max_bin")
    return params | histogram_parameters(columns, int(max_bin) if max_bin else None) | given


def cast_integers(params: dict[str, float]) -> dict[str, float]:
    return {k: int(v) if k in INTEGER_PARAMETERS else v for k, v in params.items()}


def histogram_bytes(columns: int, max_bin: int) -> int:
    """Memory of the histograms of one booster at most, with trees of depth 8, in bytes."""
    return columns * max_bin * _BYTES_PER_HISTOGRAM_CELL * _NODES_OF_LEVEL


def boost(
    name: str,
    params: dict[str, Any],
    train: xgboost.DMatrix,
    rounds: int,
    checkpoint: Checkpoint,
    *,
    valid: xgboost.DMatrix | None = None,
    patience: int = 0,
    maximize: bool = False,
    train_losses: dict[int, float] | None = None,
) -> tuple[xgboost.Booster, list[float]]:
    """Boost up to a number of rounds, starting from the checkpoint's booster.

    Like ``xgboost.train``, which cannot continue: with ``xgb_model`` it counts rounds and patience from 0 again.

    Args:
        name: name of the booster in the checkpoint.
        params: XGBoost parameters.
        train: rows to fit on.
        rounds: total number of rounds, including those of the checkpoint.
        checkpoint: stores unfinished boosters.
        valid: rows whose metric is computed after each round.
        patience: rounds without a better metric on ``valid`` after which boosting stops; 0: never.
        maximize: whether a larger metric is better.
        train_losses: filled with the metric on ``train`` by round, from 1, of the rounds of `curve_rounds`.

    Returns:
        The booster, and its metric on ``valid`` by round.

    Raises:
        StepInterruptedError: the checkpoint was halted.
    """
    import xgboost

    raw, losses = checkpoint.load_booster(name)
    progress, train_rows, metric = Progress(), train.num_row(), ""
    cache = [train] if valid is None else [train, valid]
    booster = xgboost.Booster(params, cache, model_file=raw)
    for i in range(booster.num_boosted_rounds(), rounds):
        if should_stop_early(losses, patience, maximize):
            break
        if checkpoint.halted:
            raise StepInterruptedError(
                f"{name} was stopped after {i} rounds", "train again: it continues from the checkpoint"
            )
        booster.update(train, iteration=i)
        if valid is not None:
            shown = train_losses is not None and i + 1 in curve_rounds(rounds)
            metric, loss, train_loss = _evaluate_round(booster, i, valid, train if shown else None)
            losses.append(loss)
            if train_losses is not None and train_loss is not None:
                train_losses[i + 1] = train_loss
        checkpoint.save_booster(name, booster, losses)
        if progress.due():
            loss_text = describe_loss(metric, losses, maximize)
            progress.report(
                "%s: round %d of at most %d%s, %d rows", name, i + 1, rounds, loss_text, train_rows
            )
    return booster.reset(), losses


def _evaluate_round(
    booster: xgboost.Booster, iteration: int, valid: xgboost.DMatrix, train: xgboost.DMatrix | None
) -> tuple[str, float, float | None]:
    """XGBoost's name of the metric, its value on ``valid``, and the one on ``train`` if that is given."""
    evaluated = [(valid, "valid")] if train is None else [(train, "train"), (valid, "valid")]
    *on_train, on_valid = str(booster.eval_set(evaluated, iteration=iteration)).split("\t")[1:]
    metric, _, loss = on_valid.rpartition(":")
    train_loss = float(on_train[0].rpartition(":")[2]) if on_train else None
    return metric.rpartition("-")[2], float(loss), train_loss


def curve_rounds(rounds: int) -> range:
    """The rounds, from 1, that a learning curve shows: at most `MAX_CURVE_POINTS`, so that its cost is bounded.

    Args:
        rounds: maximum number of rounds.
    """
    return range(1, rounds + 1, -(-rounds // MAX_CURVE_POINTS) or 1)


def describe_loss(metric: str, losses: list[float], maximize: bool) -> str:
    """The metric after the last round and the best one so far, for a line of progress; empty without any.

    Args:
        metric: XGBoost's name of the metric.
        losses: metric by round.
        maximize: whether a larger metric is better.
    """
    if not losses:
        return ""
    best = max(losses) if maximize else min(losses)
    return f", {metric} {losses[-1]:.6g}, the best {best:.6g} in round {losses.index(best) + 1}"


def should_stop_early(losses: list[float], patience: int, maximize: bool) -> bool:
    """Whether the metric has not improved for ``patience`` rounds.

    Args:
        losses: metric by round.
        patience: number of rounds; 0: never stop early.
        maximize: whether a larger metric is better.
    """
    if not patience or not losses:
        return False
    best = max(losses) if maximize else min(losses)
    return len(losses) - 1 - losses.index(best) >= patience


def stopping_cuts(
    fit_rows: int, rows: int, count: int, boundary: Callable[[int], int] = lambda row: row
) -> list[tuple[int, int]]:
    """Cuts that divide rows in time order: those before a cut to fit on, and the rows from it to an end to stop on.

    The last one is the cut between ``fit_rows`` and the rows for early stopping; the first has half as many rows before
    it. All have about as many rows after them.

    Args:
        fit_rows: number of rows to fit on.
        rows: number of rows, those for early stopping included.
        count: number of cuts.
        boundary: the first position from one on at which rows can be divided. Of several cuts at one position, the last
            remains.

    Returns:
        Position of the cut, and of the end, of each; none that has no rows before or after it.
    """
    shares = [1 - (count - i) / (2 * (count - 1)) for i in range(1, count)] if count > 1 else []
    positions = [round(share * fit_rows) for share in shares] + [fit_rows]
    cuts = {boundary(cut): boundary(cut + rows - fit_rows) for cut in positions}
    return [(cut, end) for cut, end in cuts.items() if 0 < cut < end]


def mean_curve(curves: Iterable[Sequence[float]]) -> list[float]:
    """The mean loss by round of several boosters; empty without any.

    Args:
        curves: loss by round of each. One that stopped early keeps its last loss: what stopped it shows that it would
            not be lower. One without losses, as of rows of one class, is left out.
    """
    known = [curve for curve in curves if curve and not math.isnan(sum(curve))]
    length = max(map(len, known), default=0)
    return [sum(curve[min(i, len(curve) - 1)] for curve in known) / len(known) for i in range(length)]


def ran_on(booster: xgboost.Booster) -> str:
    """The device that a booster was trained on, as its configuration records it: ``cpu`` or ``cuda``."""
    config = json.loads(booster.save_config())
    return str(config["learner"]["generic_param"]["device"]).split(":")[0]


def resolve_device(requested: str) -> str:
    """Determine the device that XGBoost actually uses in this process.

    Args:
        requested: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        ``cpu`` or ``cuda``.

    Raises:
        PerennialError: cuda was requested and there is none; training never falls back silently.
    """
    import xgboost

    if requested == "cpu":
        return "cpu"
    import numpy as np

    with xgboost.config_context(verbosity=0):
        probe = xgboost.train(
            {"device": "cuda", "max_depth": 1, "verbosity": 0},
            xgboost.DMatrix(np.zeros((2, 1), np.float32), label=[0, 1]),
            1,
        )
    device = ran_on(probe)
    if requested == "cuda" and device != "cuda":
        raise PerennialError(
            "training.device is cuda, but XGBoost found no GPU and would have used the CPU",
            "run it where there is a GPU, or set training.device to auto or cpu",
        )
    return device


def common_device(of_processes: Iterable[str]) -> str:
    """The device that all processes use.

    Args:
        of_processes: the device of each process.

    Raises:
        PerennialError: some have a GPU and some have none.
    """
    devices = sorted(set(of_processes))
    if len(devices) > 1:
        raise PerennialError(
            f"some workers have a GPU and some have none ({', '.join(devices)})",
            "give all of them one in the compute profile, or set training.device to cpu",
        )
    return devices[0]
