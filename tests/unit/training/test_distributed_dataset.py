"""Rows on two workers, processes of this machine: they give what one process gives."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xgboost

from perennial.core.errors import DataError, PerennialError
from perennial.modeling.trained_model import TrainedModel
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables
from perennial.training._baseline_models import fit_baseline_models
from perennial.training._dataset import Binning
from perennial.training._distributed_dataset import DistributedDataset
from perennial.training.checkpoint import Checkpoint
from perennial.training.dask_cluster import WorkerPool, worker_pool
from perennial.training.search import FitResult, search_and_fit
from support import lake, toys, training_rows

Make = Callable[..., ModelSpec]
BINNING = Binning(256, threads=1, external=False)
SEARCH = {
    "trials": 2,
    "space": {"max_depth": {"choices": [2, 3, 4]}, "learning_rate": {"low": 0.1, "high": 0.5}},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerPool]:
    """Two workers, for all tests that do not lose them."""
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PERENNIAL_HOME", str(tmp_path_factory.mktemp("pool")))
            pool = stack.enter_context(worker_pool(2))
        yield pool


def on_workers(spec: ModelSpec, two: WorkerPool) -> DistributedDataset:
    set_environment(two)
    return training_rows.on_workers(spec, two)


def set_environment(two: WorkerPool, **more: str) -> None:
    """Have workers read the lake of this test, not that of the first."""
    two.client.run(lambda environ: (os.environ.clear(), os.environ.update(environ)), dict(os.environ) | more)


def loss(spec: ModelSpec, fitted: FitResult, data: Any, x: np.ndarray, y: np.ndarray) -> float:
    """A plain loss of the fitted model on some rows, whatever the task."""
    predicted = TrainedModel(fitted.booster, data.encoding, spec.task, data.classes).predict_matrix(x)
    if predicted.ndim == 2:
        return float(-np.log(np.clip(predicted[np.arange(len(y)), y.astype(int)], 1e-6, 1)).mean())
    return float(((predicted - y) ** 2).mean())


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression", "ranking"])
def test_two_workers_learn_what_one_process_learns(
    make: Make, two: WorkerPool, tmp_path: Path, task: str
) -> None:
    spec = make(task, features={"category_order": "name" if task == "multiclass" else "label"})
    one, both = training_rows.in_process(spec, tmp_path), on_workers(spec, two)
    assert (both.fit_rows, both.rows) == (one.fit_rows, one.rows)
    assert (both.classes, both.encoding) == (one.classes, one.encoding)
    for mine, theirs in zip(both.sample(300), one.sample(300), strict=True):
        assert np.array_equal(mine, theirs, equal_nan=True)
    assert np.array_equal(both.head(5), one.head(5), equal_nan=True)
    alone, together = search_and_fit(spec, one), search_and_fit(spec, both)
    assert together.device == "cpu" and together.booster.attributes() == {}
    assert together.booster.feature_names == list(one.encoding.columns)
    assert together.trials[0].loss == pytest.approx(alone.trials[0].loss, rel=0.1, abs=0.02)
    x, y = one.sample(10_000)
    if task != "ranking":  # whose scores have no scale
        assert loss(spec, together, both, x, y) == pytest.approx(
            loss(spec, alone, one, x, y), rel=0.1, abs=0.01
        )
    assert set(fit_baseline_models(spec, both)) == set(fit_baseline_models(spec, one))


def test_rows_are_read_where_they_stay_and_shared_out_evenly(make: Make, two: WorkerPool) -> None:
    both = on_workers(make(), two)
    rows = [sum(p.rows for p in both.parts if p.worker == w) for w in two.addresses]
    assert max(rows) - min(rows) <= 2 * toys.ROWS
    assert [p.first for p in both.parts] == list(np.cumsum([0, *(p.rows for p in both.parts[:-1])]))
    matrix = both.dmatrix(0, both.rows, BINNING)
    assert {w: len(parts) for w, parts in matrix.worker_map.items()} == {
        w: sum(p.worker == w for p in both.parts) for w in two.addresses
    }


def test_the_same_again_gives_the_same_model(make: Make, two: WorkerPool) -> None:
    spec = make(training={"rounds": 5, "search": SEARCH})
    one, again = (search_and_fit(spec, on_workers(spec, two)) for _ in range(2))
    assert [t.params for t in one.trials] == [t.params for t in again.trials] and len(one.trials) == 2
    assert one.booster.save_raw("ubj") == again.booster.save_raw("ubj")


def test_rounds_stop_where_the_validation_rows_say(make: Make, two: WorkerPool) -> None:
    spec = make(training={"rounds": 200, "early_stopping_rounds": 3, "params": {"learning_rate": 1.0}})
    fitted = search_and_fit(spec, on_workers(spec, two))
    assert fitted.rounds < 100 and fitted.booster.num_boosted_rounds() == fitted.rounds


def test_rounds_of_cuts_are_those_of_one_process(make: Make, two: WorkerPool, tmp_path: Path) -> None:
    spec = make(training={"rounds": 30, "early_stopping_rounds": 5, "early_stopping_cuts": 3})
    one, both = training_rows.in_process(spec, tmp_path), on_workers(spec, two)
    firsts = [part.first for part in both.parts]
    assert [both.boundary(row) for row in (0, 1, firsts[1], both.rows)] == [
        0,
        firsts[1],
        firsts[1],
        both.rows,
    ]
    alone, together = search_and_fit(spec, one), search_and_fit(spec, both)
    assert together.rounds == together.booster.num_boosted_rounds()
    assert abs(together.rounds - alone.rounds) <= 10, "cuts are where a worker's rows begin"


def test_more_rows_than_wanted_are_a_sample_of_so_many_in_each_process(
    make: Make, two: WorkerPool, tmp_path: Path
) -> None:
    spec = make()
    everything = training_rows.in_process(spec, tmp_path)
    spec = spec.model_copy(
        update={"training": spec.training.model_copy(update={"max_rows": everything.rows // 4})}
    )
    (tmp_path / "alone").mkdir()
    alone, together = training_rows.in_process(spec, tmp_path / "alone"), on_workers(spec, two)
    assert everything.share == 1 and alone.share == together.share / 2 == pytest.approx(0.25, abs=0.01)
    for data in (alone, together):
        assert data.rows == pytest.approx(data.share * everything.rows, rel=0.2)
        assert data.fit_rows == pytest.approx(data.share * everything.fit_rows, rel=0.2)


def test_the_trainers_log_says_what_a_worker_does(
    make: Make, two: WorkerPool, caplog: pytest.LogCaptureFixture
) -> None:
    spec = make(training={"rounds": 5})
    data = on_workers(spec, two)
    set_environment(two, PERENNIAL_PROGRESS_SECONDS="0.001")
    try:
        with caplog.at_level(logging.INFO, "perennial"):
            search_and_fit(spec, data)
    finally:
        set_environment(two, PERENNIAL_PROGRESS_SECONDS="")
    lines = [message for message in caplog.messages if ": round " in message]
    assert lines and all("trial 0: round" in line and ", logloss 0." in line for line in lines[:2]), lines


def test_a_category_that_one_worker_never_saw_has_one_code(make: Make, two: WorkerPool) -> None:
    spec = make()
    table = lake.read_table(delta_tables.table_uri("published", spec.name))
    last = table["partition_date"].to_pylist()
    k = ["aa" if day == toys.FIRST else old for day, old in zip(last, table["k"].to_pylist(), strict=True)]
    table = table.set_column(table.column_names.index("k"), "k", pa.array(k))
    delta_tables.replace(delta_tables.table_uri("published", spec.name), table, toys.FIRST, toys.LAST)
    both = on_workers(spec, two)
    assert sorted(both.encoding.categories["k"]) == ["a", "aa", "b", "c"]
    at = both.encoding.columns.index("k")
    assert set(both.head(toys.ROWS)[:, at]) == {both.encoding.categories["k"].index("aa")}


def test_what_was_interrupted_goes_on(make: Make, two: WorkerPool, tmp_path: Path, monkeypatch: Any) -> None:
    spec = make(training={"rounds": 40, "early_stopping_rounds": 40})
    both, uri = on_workers(spec, two), str(tmp_path / "checkpoint")
    whole = search_and_fit(spec, both)
    base = {k: v for k, v in whole.params.items() if k not in whole.trials[0].params}
    train_rows = both.dmatrix(0, both.fit_rows, BINNING)
    valid = both.dmatrix(both.fit_rows, both.rows, BINNING, ref=train_rows)
    set_environment(two, PERENNIAL_CHECKPOINT_SECONDS="0")
    both.boost("trial 0", base, train_rows, 9, Checkpoint(uri), valid=valid, patience=40)
    checkpoint = Checkpoint(uri)
    booster, losses = both.boost("trial 0", base, train_rows, 40, checkpoint, valid=valid, patience=40)
    assert checkpoint.resumed == 9 and len(losses) == 40
    again, straight = both.boost("t", base, train_rows, 40, Checkpoint(None), valid=valid, patience=40)
    assert losses == pytest.approx(straight, abs=1e-6)
    assert booster.num_boosted_rounds() == again.num_boosted_rounds() == 40
    # one whose patience is at its end is not boosted again
    finished = xgboost.Booster(model_file=bytearray(booster.save_raw("ubj")))
    monkeypatch.setenv("PERENNIAL_CHECKPOINT_SECONDS", "0")
    Checkpoint(uri).save_booster("trial 1", finished, [0.1, 0.2, 0.3])
    assert both.boost("trial 1", base, train_rows, 90, Checkpoint(uri), patience=2)[1] == [0.1, 0.2, 0.3]


def test_errors_of_workers_keep_their_words(make: Make, two: WorkerPool) -> None:
    spec = make()
    table = lake.read_table(delta_tables.table_uri("labels", spec.name))
    same = table.set_column(table.column_names.index("label"), "label", pa.array([1] * len(table)))
    delta_tables.replace(delta_tables.table_uri("labels", spec.name), same, toys.FIRST, toys.LAST)
    with pytest.raises(DataError, match="training rows have the same label"):
        on_workers(spec, two)
    with pytest.raises(PerennialError, match=r"training\.device is cuda, but XGBoost found no GPU"):
        search_and_fit(make(training={"device": "cuda"}), on_workers(make(), two))


def test_gpus_of_workers_are_monitored(make: Make, two: WorkerPool, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771, 1000, 90'\n")
    tool.chmod(0o755)
    data = on_workers(make(), two)
    set_environment(two, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with data.monitor_gpus(True) as reports:
        time.sleep(0.2)
    assert [r["names"] for r in reports] == [["NVIDIA H200"]] * 2
    with data.monitor_gpus(False) as reports:
        pass
    assert reports == []
    set_environment(two, PATH=os.environ["PATH"])
