"""Boosting round by round, so that an interrupted training can continue.

A checkpoint in the lake holds the finished search trials and the unfinished boosters; a resumed search replays the
finished trials. Without sampling of rows or columns, the resumed booster is byte-identical to that of an uninterrupted
training. With sampling, rounds after the interruption draw other rows and columns, which is equivalent: XGBoost
does not save the state of its random generators, and a seed for each round (``seed_per_iteration``, or the parameter
set again) does not restore it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from perennial.core.errors import StepInterruptedError
from perennial.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    import xgboost


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

    Returns:
        The booster, and its metric on ``valid`` by round.

    Raises:
        StepInterruptedError: the checkpoint was halted.
    """
    import xgboost

    raw, losses = checkpoint.load_booster(name)
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
            message = str(booster.eval_set([(valid, "valid")], iteration=i))
            losses.append(float(message.rsplit(":", 1)[1]))
        checkpoint.save_booster(name, booster, losses)
    return booster.reset(), losses


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


def ran_on(booster: xgboost.Booster) -> str:
    """The device that a booster was trained on, as its configuration records it: ``cpu`` or ``cuda``."""
    config = json.loads(booster.save_config())
    return str(config["learner"]["generic_param"]["device"]).split(":")[0]
