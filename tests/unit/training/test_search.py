"""The search within its budget, early stopping, and the last fit."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from perennial.core.errors import StepInterruptedError, StorageError
from perennial.training import _boosting
from perennial.training import search as search_module
from perennial.training._baseline_models import fit_baseline_models
from perennial.training._dataset import Dataset, EncodedRowFile
from perennial.training.checkpoint import Checkpoint, SearchTrial
from perennial.training.search import N_STARTUP_TRIALS, search_and_fit
from support.training_rows import PARAMS, generated_rows, matrices

SPACE = {
    "max_depth": {"low": 1, "high": 4},
    "learning_rate": {"low": 0.05, "high": 0.5, "log": True},
    "subsample": {"choices": [0.7, 1.0]},
}


def test_the_search_keeps_its_budget_its_bounds_and_its_seed(make_empty: Any, tmp_path: Path) -> None:
    spec = make_empty(search={"trials": 6, "space": SPACE}, rounds=10, seed=3)
    reported: list[SearchTrial] = []
    one = search_and_fit(spec, generated_rows(tmp_path), on_trial=reported.append)
    assert reported == one.trials
    assert [t.number for t in one.trials] == list(range(6))
    for trial in one.trials:
        assert trial.params["max_depth"] in (1, 2, 3, 4)
        assert 0.05 <= trial.params["learning_rate"] <= 0.5
        assert trial.params["subsample"] in (0.7, 1.0)
        assert 1 <= trial.rounds <= 10
    best = min(one.trials, key=lambda t: t.loss)
    assert {k: one.params[k] for k in SPACE} == best.params
    assert one.rounds == best.rounds == one.booster.num_boosted_rounds()
    two = search_and_fit(spec, generated_rows(tmp_path))
    assert [t.params for t in two.trials] == [t.params for t in one.trials]
    assert two.booster.save_raw("ubj") == one.booster.save_raw("ubj")


def test_trials_side_by_side_are_those_one_by_one(
    make_empty: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_empty(search={"trials": 12, "space": SPACE}, rounds=30, early_stopping_rounds=5, seed=3)
    outcomes = []
    for threads in ("1", "4"):
        monkeypatch.setenv("PERENNIAL_THREADS", threads)
        rows, reported = generated_rows(tmp_path, rows=2000), list[SearchTrial]()
        assert rows.max_parallel_trials(N_STARTUP_TRIALS) == int(threads)
        one = search_and_fit(spec, rows, on_trial=reported.append)
        outcomes.append(
            ([(t.number, t.params, t.loss, t.rounds) for t in reported], one.booster.save_raw("ubj"))
        )
    assert outcomes[0] == outcomes[1]
    assert [number for number, *_ in outcomes[0][0]] == list(range(12))


def test_only_as_many_trials_run_side_by_side_as_memory_holds(
    make_empty: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = generated_rows(tmp_path)
    monkeypatch.setenv("PERENNIAL_THREADS", "8")
    monkeypatch.setenv("PERENNIAL_MEMORY_MB", "256")
    assert [rows.max_parallel_trials(trials) for trials in (10, 5, 1)] == [8, 5, 1]
    rows.file.rows = 3_000_000  # some 50 MiB each, of the 128 that may be used
    assert rows.fits_in_memory() and rows.max_parallel_trials(10) == 2
    rows.file.rows = 30_000_000
    assert not rows.fits_in_memory() and rows.max_parallel_trials(10) == 1


def test_histograms_of_wide_tables_are_bounded(
    make_empty: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _boosting.histogram_parameters(250, None) == {}  # the models of other tables stay as they are
    for columns, bins in ((251, 256), (500, 256), (2000, 64), (20_000, 32)):
        bounded = _boosting.histogram_parameters(columns, None)
        assert bounded["max_bin"] == bins
        assert bounded["max_cached_hist_node"] * columns * bins * 16 <= 128 * 2**20
    assert _boosting.histogram_parameters(2000, 128)["max_bin"] == 128
    given = search_module.xgboost_parameters(make_empty(params={"max_bin": 128}), "cpu", 0, 2000)
    assert given["max_bin"] == 128 and given["max_cached_hist_node"] == 32
    rows = generated_rows(tmp_path)
    rows.file.columns = 2000
    monkeypatch.setenv("PERENNIAL_THREADS", "8")
    assert rows.fits_in_memory() and rows.max_parallel_trials(10) == 1


def test_histograms_that_are_counted_again_make_the_same_trees() -> None:
    train, valid = matrices()
    params = PARAMS | {"max_depth": 6}
    boosters = [
        _boosting.boost("fit", params | more, train, 20, Checkpoint(None), valid=valid)
        for more in ({}, {"max_cached_hist_node": 4})
    ]
    assert boosters[0][1] == boosters[1][1]
    assert boosters[0][0].save_raw("ubj") == boosters[1][0].save_raw("ubj")


def test_one_trial_that_fails_ends_those_beside_it(
    make_empty: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_empty(search={"trials": 4, "space": SPACE}, rounds=10_000, early_stopping_rounds=1000)
    monkeypatch.setenv("PERENNIAL_THREADS", "2")
    real, began, beside = _boosting.boost, threading.Event(), dict[str, str]()

    def boost(name: str, *args: Any, **named: Any) -> Any:
        if name == "trial 0":
            began.wait(60)
            raise StorageError("the disk is full", "free some space")
        began.set()
        try:
            return real(name, *args, **named)
        except StepInterruptedError as error:
            beside[name] = error.cause
            raise

    monkeypatch.setattr(Dataset, "boost", staticmethod(boost))
    with pytest.raises(StorageError, match="the disk is full"):
        search_and_fit(spec, generated_rows(tmp_path))
    assert beside["trial 1"].startswith("trial 1 was stopped after ")


def test_the_specs_own_parameters_are_tried_first(make_empty: Any, tmp_path: Path) -> None:
    params = {"max_depth": 2, "learning_rate": 0.3, "subsample": 1.0}
    spec = make_empty(search={"trials": 2, "space": SPACE}, params=params, rounds=5)
    assert search_and_fit(spec, generated_rows(tmp_path)).trials[0].params == params


def test_parameters_that_the_search_cannot_draw_are_no_trial(make_empty: Any, tmp_path: Path) -> None:
    params = {"max_depth": 2, "learning_rate": 0.1, "subsample": 0.9}
    fitted = search_and_fit(
        make_empty(params=params, search={"trials": 2, "space": SPACE}), generated_rows(tmp_path)
    )
    assert {t.params["subsample"] for t in fitted.trials} <= {0.7, 1.0}


def test_time_ends_a_search(make_empty: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_empty(search={"trials": 500, "minutes": 0.01, "space": SPACE}, rounds=5)
    fitted = search_and_fit(spec, generated_rows(tmp_path))
    assert 1 <= len(fitted.trials) < 500 and fitted.search_end == "minutes"


@pytest.mark.parametrize("threads", ["1", "4"])
def test_a_budget_ends_a_search_at_the_same_trial_whatever_runs_beside_it(
    make_empty: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    monkeypatch.setenv("PERENNIAL_THREADS", threads)
    rows = generated_rows(tmp_path)
    trial = rows.fit_rows * len(rows.encoding.columns) * 5 / 1e6
    options = {"rounds": 5, "early_stopping_rounds": 5}
    for trials, ends in ((3, "budget"), (12, "budget"), (13, "")):
        search = {"trials": 13, "budget": trial * (trials - 0.5), "space": SPACE}
        fitted = search_and_fit(make_empty(search=search, **options), rows)
        assert ([t.number for t in fitted.trials], fitted.search_end) == ([*range(trials)], ends)


@pytest.mark.parametrize(("budget", "trials"), [(2.5, 1), (6.5, 3)])
def test_what_is_boosted_on_cuts_counts_in_the_budget(
    make_empty: Any, tmp_path: Path, budget: float, trials: int
) -> None:
    """Each of two trials is boosted on half, two thirds and five sixths of the rows: twice as much as in the search."""
    rows = generated_rows(tmp_path)
    trial = rows.fit_rows * len(rows.encoding.columns) * 5 / 1e6
    spec = make_empty(
        search={"trials": 9, "budget": trial * budget, "space": SPACE},
        rounds=5, early_stopping_rounds=5, early_stopping_cuts=4,
    )  # fmt: skip
    fitted = search_and_fit(spec, rows)
    assert (len(fitted.trials), fitted.search_end) == (trials, "budget")


@pytest.mark.parametrize(("threads", "cuts", "left"), [("1", 1, 0), ("2", 1, 1), ("2", 4, 0)])
def test_an_interrupted_search_has_the_time_that_is_left(
    make_empty: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: str, cuts: int, left: int
) -> None:
    """Two trials of 40 seconds each used up a minute one by one, and not side by side, unless cuts follow."""
    monkeypatch.setenv("PERENNIAL_THREADS", threads)
    search = {"trials": 3, "minutes": 1, "space": SPACE}
    spec = make_empty(search=search, rounds=5, early_stopping_cuts=cuts)
    first = search_and_fit(spec, generated_rows(tmp_path)).trials
    checkpoint = Checkpoint(None)
    checkpoint.trials = [replace(t, seconds=40) for t in first[:2]]
    clock = iter([0.0, *[5.0] * 100])  # from the second reading on, five seconds have gone
    monkeypatch.setattr(search_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert len(search_and_fit(spec, generated_rows(tmp_path), checkpoint=checkpoint).trials) == 2 + left


def test_without_a_search_the_parameters_are_taken_as_they_are(make_empty: Any, tmp_path: Path) -> None:
    fitted = search_and_fit(
        make_empty(params={"max_depth": 2, "learning_rate": 0.2}, rounds=5), generated_rows(tmp_path)
    )
    assert len(fitted.trials) == 1
    assert (fitted.params["max_depth"], fitted.params["learning_rate"]) == (2, 0.2)


def test_rounds_stop_where_the_validation_rows_say(make_empty: Any, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 2, 600)
    spec = make_empty(rounds=200, early_stopping_rounds=3, params={"max_depth": 6, "learning_rate": 0.5})
    assert search_and_fit(spec, generated_rows(tmp_path, noise)).rounds < 50


def test_rounds_are_those_that_are_best_on_average_over_cuts(make_empty: Any, tmp_path: Path) -> None:
    """The latest rows have labels by chance: alone, they stop boosting at once."""
    y = generated_rows(tmp_path).y.copy()
    y[540:] = np.random.default_rng(1).integers(0, 2, 60)
    settings = {"rounds": 60, "early_stopping_rounds": 10, "params": {"max_depth": 3, "learning_rate": 0.2}}
    rows = replace(generated_rows(tmp_path, y), fit_rows=540)
    alone = search_and_fit(make_empty(**settings), rows)
    spec, checkpoint = make_empty(**settings, early_stopping_cuts=4), Checkpoint(str(tmp_path / "checkpoint"))
    averaged, again = (search_and_fit(spec, rows, checkpoint=checkpoint, validate=True) for _ in range(2))
    assert alone.rounds == alone.trials[0].rounds == averaged.trials[0].rounds < 3
    assert averaged.trials[0].rounds + 3 < averaged.rounds == averaged.booster.num_boosted_rounds()
    assert averaged.validated is not None and averaged.validated.num_boosted_rounds() == averaged.rounds
    assert averaged.booster.save_raw("ubj") == again.booster.save_raw("ubj")


def test_the_first_trial_is_used_if_it_is_better_on_average_over_cuts(
    make_empty: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the latest rows, whose labels are those of the others by chance, the parameters that learn nothing win."""
    y = generated_rows(tmp_path).y.copy()
    y[540:] = np.random.default_rng(1).integers(0, 2, 60)
    rows = replace(generated_rows(tmp_path, y), fit_rows=540)
    settings: dict[str, Any] = {
        "rounds": 40, "early_stopping_rounds": 10, "params": {"max_depth": 3, "learning_rate": 0.2, "reg_lambda": 1},
        "search": {"trials": 4, "space": {"reg_lambda": {"choices": [1, 100_000]}}},
    }  # fmt: skip
    alone = search_and_fit(make_empty(**settings), rows)
    boosted, matrices = list[str](), list[tuple[int, int]]()
    real_boost, real_dmatrix = Dataset.boost, Dataset.dmatrix

    def boost(name: str, *args: Any, **named: Any) -> Any:
        boosted.append(name)
        return real_boost(name, *args, **named)

    def dmatrix(data: Dataset, start: int, stop: int, *args: Any, **named: Any) -> Any:
        matrices.append((start, stop))
        return real_dmatrix(data, start, stop, *args, **named)

    monkeypatch.setattr(Dataset, "boost", staticmethod(boost))
    monkeypatch.setattr(Dataset, "dmatrix", dmatrix)
    averaged = search_and_fit(make_empty(**settings, early_stopping_cuts=4), rows)
    best = min(alone.trials, key=lambda t: t.loss).number
    assert [name for name in boosted if name.startswith("cut")] == [
        f"cut {i} of trial {n}" for i in (1, 2, 3) for n in (best, 0)
    ], "the last cut is that of the search"
    assert [pair for pair in matrices if pair[1] not in (540, 600)] == [
        (0, 270), (270, 330), (0, 360), (360, 420), (0, 450), (450, 510)
    ], "both trials are boosted on the same matrices"  # fmt: skip
    assert alone.params["reg_lambda"] == 100_000 and averaged.params["reg_lambda"] == 1
    assert averaged.best_trial is not None and averaged.best_trial.number == 0
    assert [t.loss for t in averaged.trials] == [t.loss for t in alone.trials]


def test_cuts_of_lists_divide_none(make_empty: Any, tmp_path: Path) -> None:
    rows = replace(generated_rows(tmp_path), lists=np.repeat(np.arange(1, 31), 20))
    assert [rows.boundary(row) for row in (0, 1, 20, 21, 599, 600, 700)] == [0, 20, 20, 40, 600, 600, 600]
    assert [generated_rows(tmp_path).boundary(row) for row in (0, 1, 599, 700)] == [0, 1, 599, 600]


def test_the_last_rows_are_learned_from_too(make_empty: Any, tmp_path: Path) -> None:
    """Validation rows choose the rounds; the final model is fitted on them too."""
    spec, one = make_empty(rounds=5), generated_rows(tmp_path)
    flipped = one.y.copy()
    flipped[one.fit_rows :] = 1 - flipped[one.fit_rows :]
    two = generated_rows(tmp_path, flipped)
    spec = make_empty(rounds=1, early_stopping_rounds=1)
    assert search_and_fit(spec, one).booster.save_raw("ubj") != search_and_fit(spec, two).booster.save_raw(
        "ubj"
    )


def test_a_column_that_is_all_missing_hurts_nobody(make_empty: Any, tmp_path: Path) -> None:
    rows = generated_rows(tmp_path)
    matrix = next(rows.file.batches(0, 600))[0]
    matrix[:, 0] = np.nan
    file = EncodedRowFile(tmp_path / "missing", 3)
    file.append(matrix, rows.y, None)
    missing = Dataset(file, rows.fit_rows, rows.encoding, (), rows.y, None)
    assert np.isfinite(fit_baseline_models(make_empty(), missing)["linear"](matrix)).all()
    assert search_and_fit(make_empty(rounds=3), missing).rounds >= 1
