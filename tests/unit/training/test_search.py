"""The search within its budget, early stopping, and the simple models that a challenger is compared with."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from perennial.core.errors import StepInterruptedError, StorageError
from perennial.modeling.encoding import Encoding
from perennial.spec.model_spec import ModelSpec
from perennial.training import _baseline_models, _boosting
from perennial.training import search as fitting
from perennial.training._dataset import Dataset, EncodedRowFile
from perennial.training.baseline_models import fit_baselines
from perennial.training.checkpoint import Checkpoint
from perennial.training.search import N_STARTUP_TRIALS, Trial, search_and_fit
from support import toys

SPACE = {
    "max_depth": {"low": 1, "high": 4},
    "learning_rate": {"low": 0.05, "high": 0.5, "log": True},
    "subsample": {"choices": [0.7, 1.0]},
}


@pytest.fixture
def make(house: Path, tmp_path: Path) -> Any:
    def make(task: str = "binary", **training: Any) -> ModelSpec:
        return toys.model(tmp_path / "models", toys.unique(), task, training=training)

    return make


def data(folder: Path, y: Any = None, rows: int = 600, classes: tuple[str, ...] = ()) -> Dataset:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(rows, 3)).astype(np.float32)
    matrix[:, 2] = rng.integers(0, 3, rows)
    matrix[::17, 0] = np.nan
    if y is None:
        y = (np.nan_to_num(matrix[:, 0]) > 0) == (matrix[:, 1] > 0)
    spool = EncodedRowFile(folder / toys.unique("rows"), 3)
    spool.append(matrix, np.asarray(y, np.float32), None)
    encoding = Encoding(("a", "b", "c"), {"c": ["x", "y", "z"]})
    return Dataset(spool, rows * 3 // 4, encoding, classes, np.concatenate(spool.y), None)


def test_the_search_keeps_its_budget_its_bounds_and_its_seed(make: Any, tmp_path: Path) -> None:
    spec = make(search={"trials": 6, "space": SPACE}, rounds=10, seed=3)
    told: list[Trial] = []
    one = search_and_fit(spec, data(tmp_path), on_trial=told.append)
    assert told == one.trials
    assert [t.number for t in one.trials] == list(range(6))
    for trial in one.trials:
        assert trial.params["max_depth"] in (1, 2, 3, 4)
        assert 0.05 <= trial.params["learning_rate"] <= 0.5
        assert trial.params["subsample"] in (0.7, 1.0)
        assert 1 <= trial.rounds <= 10
    best = min(one.trials, key=lambda t: t.loss)
    assert {k: one.params[k] for k in SPACE} == best.params
    assert one.rounds == best.rounds == one.booster.num_boosted_rounds()
    two = search_and_fit(spec, data(tmp_path))
    assert [t.params for t in two.trials] == [t.params for t in one.trials]
    assert two.booster.save_raw("ubj") == one.booster.save_raw("ubj")


def test_trials_side_by_side_are_those_one_by_one(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make(search={"trials": 12, "space": SPACE}, rounds=30, early_stopping_rounds=5, seed=3)
    found = []
    for threads in ("1", "4"):
        monkeypatch.setenv("PERENNIAL_THREADS", threads)
        rows, told = data(tmp_path, rows=2000), list[Trial]()
        assert rows.abreast(N_STARTUP_TRIALS) == int(threads)
        one = search_and_fit(spec, rows, on_trial=told.append)
        found.append(([(t.number, t.params, t.loss, t.rounds) for t in told], one.booster.save_raw("ubj")))
    assert found[0] == found[1]
    assert [number for number, *_ in found[0][0]] == list(range(12))


def test_only_as_many_trials_run_side_by_side_as_memory_holds(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = data(tmp_path)
    monkeypatch.setenv("PERENNIAL_THREADS", "8")
    monkeypatch.setenv("PERENNIAL_MEMORY_MB", "256")
    assert [rows.abreast(trials) for trials in (10, 5, 1)] == [8, 5, 1]
    rows.spool.rows = 3_000_000  # some 50 MiB each, of the 128 that may be used
    assert rows.fits() and rows.abreast(10) == 2
    rows.spool.rows = 30_000_000
    assert not rows.fits() and rows.abreast(10) == 1


def test_one_trial_that_fails_ends_those_beside_it(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make(search={"trials": 4, "space": SPACE}, rounds=10_000, early_stopping_rounds=1000)
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
        search_and_fit(spec, data(tmp_path))
    assert beside["trial 1"].startswith("trial 1 was stopped after ")


def test_the_specs_own_parameters_are_tried_first(make: Any, tmp_path: Path) -> None:
    params = {"max_depth": 2, "learning_rate": 0.3, "subsample": 1.0}
    spec = make(search={"trials": 2, "space": SPACE}, params=params, rounds=5)
    assert search_and_fit(spec, data(tmp_path)).trials[0].params == params


def test_parameters_that_the_search_cannot_draw_are_no_trial(make: Any, tmp_path: Path) -> None:
    params = {"max_depth": 2, "learning_rate": 0.1, "subsample": 0.9}
    found = search_and_fit(make(params=params, search={"trials": 2, "space": SPACE}), data(tmp_path))
    assert {t.params["subsample"] for t in found.trials} <= {0.7, 1.0}


def test_time_ends_a_search(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make(search={"trials": 500, "minutes": 0.01, "space": SPACE}, rounds=5)
    assert 1 <= len(search_and_fit(spec, data(tmp_path)).trials) < 500


@pytest.mark.parametrize(("threads", "left"), [("1", 0), ("2", 1)])
def test_an_interrupted_search_has_the_time_that_is_left(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: str, left: int
) -> None:
    """Two trials of 40 seconds each used up a minute one by one, and not side by side."""
    monkeypatch.setenv("PERENNIAL_THREADS", threads)
    spec = make(search={"trials": 3, "minutes": 1, "space": SPACE}, rounds=5)
    first = search_and_fit(spec, data(tmp_path)).trials
    checkpoint = Checkpoint(None)
    checkpoint.trials = [replace(t, seconds=40) for t in first[:2]]
    now = iter([0.0, *[5.0] * 100])  # the second time that anything is asked for, five seconds have gone
    monkeypatch.setattr(fitting, "time", SimpleNamespace(monotonic=lambda: next(now)))
    assert len(search_and_fit(spec, data(tmp_path), checkpoint=checkpoint).trials) == 2 + left


def test_without_a_search_the_parameters_are_taken_as_they_are(make: Any, tmp_path: Path) -> None:
    found = search_and_fit(make(params={"max_depth": 2, "learning_rate": 0.2}, rounds=5), data(tmp_path))
    assert len(found.trials) == 1
    assert (found.params["max_depth"], found.params["learning_rate"]) == (2, 0.2)


def test_rounds_stop_where_the_validation_rows_say(make: Any, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 2, 600)
    spec = make(rounds=200, early_stopping_rounds=3, params={"max_depth": 6, "learning_rate": 0.5})
    assert search_and_fit(spec, data(tmp_path, noise)).rounds < 50


def test_the_last_rows_are_learned_from_too(make: Any, tmp_path: Path) -> None:
    """Validation rows choose the rounds; the model that is kept has seen them."""
    spec, one = make(rounds=5), data(tmp_path)
    flipped = one.y.copy()
    flipped[one.fit :] = 1 - flipped[one.fit :]
    two = data(tmp_path, flipped)
    spec = make(rounds=1, early_stopping_rounds=1)
    assert search_and_fit(spec, one).booster.save_raw("ubj") != search_and_fit(spec, two).booster.save_raw(
        "ubj"
    )


def test_baselines_know_what_they_can(make: Any, tmp_path: Path) -> None:
    straight = data(tmp_path)
    y = np.nan_to_num(next(straight.spool.batches(0, 600))[0][:, 1]) > 0
    found = fit_baselines(make(), rows := data(tmp_path, y))
    matrix = next(rows.spool.batches(0, 600))[0]
    constant, linear = found["constant"](matrix), found["linear"](matrix)
    assert np.allclose(constant, y.mean(), atol=1e-6)
    assert linear[y].min() > linear[~y].max()


def test_baselines_of_a_rare_class_that_the_sample_missed(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_baseline_models, "BASELINE_ROWS", 10)
    y = np.zeros(600)
    y[1] = 1  # the sample takes every sixtieth
    rows = data(tmp_path, y)
    found = fit_baselines(make(), rows)
    matrix = next(rows.spool.batches(0, 600))[0]
    assert set(found) == {"constant"}
    assert found["constant"](matrix).tolist() == [0] * 600


def test_baselines_of_classes_and_values(make: Any, tmp_path: Path) -> None:
    y = np.arange(600) % 3
    rows = data(tmp_path, y, classes=("a", "b", "c"))
    matrix = next(rows.spool.batches(0, 600))[0]
    for predict in fit_baselines(make("multiclass"), rows).values():
        assert predict(matrix).shape == (600, 3)
        assert np.allclose(predict(matrix).sum(axis=1), 1)
    for predict in fit_baselines(make("regression"), data(tmp_path, y)).values():
        assert predict(matrix).shape == (600,)


def test_a_column_that_is_all_missing_hurts_nobody(make: Any, tmp_path: Path) -> None:
    rows = data(tmp_path)
    matrix = next(rows.spool.batches(0, 600))[0]
    matrix[:, 0] = np.nan
    spool = EncodedRowFile(tmp_path / "missing", 3)
    spool.append(matrix, rows.y, None)
    missing = Dataset(spool, rows.fit, rows.encoding, (), rows.y, None)
    assert np.isfinite(fit_baselines(make(), missing)["linear"](matrix)).all()
    assert search_and_fit(make(rounds=3), missing).rounds >= 1
