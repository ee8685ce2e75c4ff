"""A training that was stopped goes on, and gives the model that an undisturbed one gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

from perennial.training import checkpoint as boosting
from perennial.training._boosting import boost
from perennial.training.checkpoint import Checkpoint, Trial

PARAMS: dict[str, Any] = {
    "objective": "binary:logistic", "eval_metric": "logloss", "tree_method": "hist", "seed": 3, "nthread": 1,
    "max_depth": 3, "learning_rate": 0.3,
}  # fmt: skip


class Stopped(Exception):
    """What stops a training from outside."""


def matrices() -> tuple[xgboost.QuantileDMatrix, xgboost.QuantileDMatrix]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 6)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] ** 2 + rng.normal(size=4000) > 0).astype(int)
    train = xgboost.QuantileDMatrix(x[:3000], y[:3000])
    return train, xgboost.QuantileDMatrix(x[3000:], y[3000:], ref=train)


@pytest.fixture
def every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_CHECKPOINT_SECONDS", "0")


def stop_after(monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    """Have the checkpoint's writer stop the training once it has saved so many rounds."""
    keep = Checkpoint.keep

    def stopping(self: Checkpoint, name: str, booster: xgboost.Booster, losses: list[float]) -> None:
        keep(self, name, booster, losses)
        if booster.num_boosted_rounds() == rounds:
            raise Stopped

    monkeypatch.setattr(Checkpoint, "keep", stopping)


@pytest.mark.parametrize("patience", [0, 5])
def test_what_goes_on_gives_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_round: None, patience: int
) -> None:
    train, valid = matrices()
    whole, losses = boost("t", PARAMS, train, 60, Checkpoint(None), valid=valid, patience=patience)
    place = str(tmp_path / "checkpoint")
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(Stopped):
            boost("t", PARAMS, train, 60, Checkpoint(place), valid=valid, patience=patience)
    checkpoint = Checkpoint(place)
    resumed, again = boost(
        "t", PARAMS, *(matrices()[:1]), 60, checkpoint, valid=matrices()[1], patience=patience
    )
    assert checkpoint.resumed == 9
    assert again == losses
    assert resumed.save_raw("ubj") == whole.save_raw("ubj")
    if patience:
        assert len(losses) < 60 and len(losses) - 1 - losses.index(min(losses)) == patience


def test_with_sampling_it_goes_on_to_the_last_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_round: None
) -> None:
    train, _ = matrices()
    params, place = PARAMS | {"subsample": 0.6, "colsample_bytree": 0.5}, str(tmp_path / "checkpoint")
    whole, _ = boost("t", params, train, 12, Checkpoint(None))
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(Stopped):
            boost("t", params, train, 12, Checkpoint(place))
    resumed, _ = boost("t", params, train, 12, Checkpoint(place))
    assert resumed.num_boosted_rounds() == 12
    assert resumed[:9].get_dump() == whole[:9].get_dump()


def test_it_boosts_and_stops_as_xgboost_does() -> None:
    train, valid = matrices()
    mine, losses = boost("t", PARAMS, train, 80, Checkpoint(None), valid=valid, patience=5)
    log: dict[str, Any] = {}
    theirs = xgboost.train(
        PARAMS, train, 80, evals=[(valid, "valid")], early_stopping_rounds=5,
        evals_result=log, verbose_eval=False,
    )  # fmt: skip
    assert losses == log["valid"]["logloss"]
    assert losses.index(min(losses)) == theirs.best_iteration
    assert mine.get_dump() == theirs.get_dump()


def test_trials_that_are_done_are_not_done_again(tmp_path: Path) -> None:
    place = str(tmp_path / "checkpoint")
    Checkpoint(place).add(Trial(0, {"max_depth": 3.0}, 0.5, 12, 4.0))
    found = Checkpoint(place)
    assert [t.seconds for t in found.trials] == [4.0]
    assert found.trial(0, {"max_depth": 4.0}) is None and found.trial(1, {"max_depth": 3.0}) is None
    assert found.trial(0, {"max_depth": 3.0}) == Trial(0, {"max_depth": 3.0}, 0.5, 12, 4.0)
    assert found.resumed == 12
    found.clear()
    assert Checkpoint(place).trial(0, {"max_depth": 3.0}) is None
    found.clear()


def test_a_booster_of_another_trial_is_left_alone(tmp_path: Path, every_round: None) -> None:
    train, _ = matrices()
    place = str(tmp_path / "checkpoint")
    boost("trial 0", PARAMS, train, 4, Checkpoint(place))
    assert Checkpoint(place).booster("trial 1") == (None, [])
    raw, _ = Checkpoint(place).booster("trial 0")
    assert raw and xgboost.Booster(model_file=raw).attributes() == {}


def test_boosters_side_by_side_are_each_kept(tmp_path: Path, every_round: None) -> None:
    train, _ = matrices()
    place = tmp_path / "checkpoint"
    checkpoint = Checkpoint(str(place))
    boost("trial 0", PARAMS, train, 4, checkpoint)
    boost("trial 1", PARAMS, train, 3, checkpoint)
    checkpoint.add(Trial(0, {}, 0.5, 4, 1.0))
    assert not Checkpoint(str(place)).booster("trial 0")[0]  # it is done
    boost("last fit of trial 0", PARAMS, train, 3, checkpoint)
    found = Checkpoint(str(place))
    assert found.booster("trial 1")[0] and found.booster("last fit of trial 0")[0] and found.resumed == 6
    assert not found.booster("last fit of trial 1")[0]
    checkpoint.clear()
    assert not list(place.iterdir())


def test_checkpoints_are_not_written_more_often_than_asked(tmp_path: Path) -> None:
    assert boosting.CHECKPOINT_SECONDS >= 30
    train, _ = matrices()
    boost("t", PARAMS, train, 4, Checkpoint(str(tmp_path / "checkpoint")))
    assert not (tmp_path / "checkpoint").exists()
