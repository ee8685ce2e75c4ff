"""Boosting round by round, so that a training that was stopped from outside goes on where it was.

A checkpoint on the lake holds the trials that are done and the boosters under way; a search replays what is done.
Without sampling of rows or columns, what goes on gives the very model of an undisturbed training. With it, the rounds
after the interruption draw other rows and columns, as good: XGBoost does not save its generators' state, and a seed of
each round's own (``seed_per_iteration``, or the parameter set anew) does not bring it back.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from perennial.core.errors import StepInterruptedError
from perennial.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    import xgboost

log = logging.getLogger("perennial")


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
    """Boost up to ``rounds`` rounds, from where the checkpoint has it; as ``xgboost.train``, which cannot go on so.

    ``xgboost.train(xgb_model=...)`` counts its rounds, and its patience, from 0 again.

    Args:
        name: what the checkpoint calls it.
        valid: rows whose metric is taken after each round.
        patience: rounds without a better metric on ``valid`` after which it stops; 0: never.
        maximize: more is better.

    Returns:
        The booster, and its metric on ``valid`` by round.

    Raises:
        Interrupted: the checkpoint was halted.
    """
    import xgboost

    found, losses = checkpoint.booster(name)
    cache = [train] if valid is None else [train, valid]
    booster = xgboost.Booster(params, cache, model_file=found)
    for i in range(booster.num_boosted_rounds(), rounds):
        if should_stop_early(losses, patience, maximize):
            break
        if checkpoint.halted:
            raise StepInterruptedError(
                f"{name} was stopped after {i} rounds", "train again: it goes on from there"
            )
        booster.update(train, iteration=i)
        if valid is not None:
            told = str(booster.eval_set([(valid, "valid")], iteration=i))
            losses.append(float(told.rsplit(":", 1)[1]))
        checkpoint.keep(name, booster, losses)
    return booster.reset(), losses


def should_stop_early(losses: list[float], patience: int, maximize: bool) -> bool:
    """Whether the metric, by round, has not become better for ``patience`` rounds; never where that is 0."""
    if not patience or not losses:
        return False
    best = max(losses) if maximize else min(losses)
    return len(losses) - 1 - losses.index(best) >= patience


def ran_on(booster: xgboost.Booster) -> str:
    """The device a booster was trained on, by its own account."""
    config = json.loads(booster.save_config())
    return str(config["learner"]["generic_param"]["device"]).split(":")[0]
