"""Boosting that was interrupted continues, and gives the model of an undisturbed one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import xgboost
from hypothesis import given
from hypothesis import strategies as st

from perennial.training._boosting import boost, curve_rounds, mean_curve, stopping_cuts
from perennial.training.checkpoint import Checkpoint
from support.training_rows import PARAMS, matrices


class Stopped(Exception):
    """Stops a training from outside."""


def stop_after(monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    """Have the checkpoint's writer stop the training once it has saved so many rounds."""
    save = Checkpoint.save_booster

    def stopping(self: Checkpoint, name: str, booster: xgboost.Booster, losses: list[float]) -> None:
        save(self, name, booster, losses)
        if booster.num_boosted_rounds() == rounds:
            raise Stopped

    monkeypatch.setattr(Checkpoint, "save_booster", stopping)


@pytest.mark.parametrize("patience", [0, 5])
def test_what_goes_on_gives_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_round: None, patience: int
) -> None:
    train, valid = matrices()
    whole, losses = boost("t", PARAMS, train, 60, Checkpoint(None), valid=valid, patience=patience)
    uri = str(tmp_path / "checkpoint")
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(Stopped):
            boost("t", PARAMS, train, 60, Checkpoint(uri), valid=valid, patience=patience)
    checkpoint = Checkpoint(uri)
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
    params, uri = PARAMS | {"subsample": 0.6, "colsample_bytree": 0.5}, str(tmp_path / "checkpoint")
    whole, _ = boost("t", params, train, 12, Checkpoint(None))
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(Stopped):
            boost("t", params, train, 12, Checkpoint(uri))
    resumed, _ = boost("t", params, train, 12, Checkpoint(uri))
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


def test_the_learning_curve_costs_a_bounded_number_of_evaluations_and_changes_no_model() -> None:
    train, valid = matrices()
    plain, losses = boost("t", PARAMS, train, 120, Checkpoint(None), valid=valid)
    on_train: dict[int, float] = {}
    watched, again = boost("t", PARAMS, train, 120, Checkpoint(None), valid=valid, train_losses=on_train)
    assert watched.save_raw("ubj") == plain.save_raw("ubj") and again == losses
    assert list(on_train) == list(curve_rounds(120)) == list(range(1, 121, 3))
    assert on_train[118] == pytest.approx(float(watched[:118].eval(train).rpartition(":")[2]), abs=1e-5)


@pytest.mark.parametrize("rounds", [1, 49, 50, 51, 1000, 4321])
def test_a_learning_curve_has_at_most_fifty_points(rounds: int) -> None:
    assert 1 <= len(curve_rounds(rounds)) <= 50 and curve_rounds(rounds)[0] == 1


@given(st.integers(1, 5000), st.integers(1, 1000), st.integers(1, 10))
def test_cuts_end_with_that_before_the_rows_for_early_stopping(fit_rows: int, later: int, count: int) -> None:
    cuts = stopping_cuts(fit_rows, fit_rows + later, count)
    assert cuts[-1] == (fit_rows, fit_rows + later)
    assert 1 <= len(cuts) <= count and len(cuts) == len(set(cuts))
    assert all(fit_rows // 2 <= cut <= fit_rows and stop - cut == later for cut, stop in cuts)
    assert cuts == sorted(cuts)
    within = stopping_cuts(fit_rows, fit_rows + later, count, lambda row: -(-row // fit_rows) * fit_rows)
    assert [cut for cut, _ in within] == [fit_rows], "where rows can be divided once, all cuts are one"


def test_the_mean_of_curves_of_different_lengths() -> None:
    assert mean_curve([]) == mean_curve([[]]) == []
    assert mean_curve([[3.0, 1.0, 2.0]]) == [3, 1, 2]
    assert mean_curve([[1.0, 2.0], [9.0, 6.0, 4.0, 5.0]]) == [5, 4, 3, 3.5], "the first stopped early"
    assert mean_curve([[math.nan, math.nan], [0.5, 0.7]]) == [0.5, 0.7], "rows of one class have no AUC"
