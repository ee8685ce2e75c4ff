"""Training on two workers, processes of this machine: what one process gives, and what becomes of a lost worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

from perennial.core import runtime
from perennial.core.errors import DataError, PerennialError, StepInterruptedError, WorkersUnavailableError
from perennial.features.engine import FeatureQuery
from perennial.modeling import registry
from perennial.modeling.trained_model import TrainedModel
from perennial.spec.model_spec import ModelSpec
from perennial.steps.train import train
from perennial.storage import delta_tables, manifests, object_store
from perennial.training import dask_cluster, distributed_dataset
from perennial.training._dataset import Binning
from perennial.training._distributed_dataset import DatasetRef, DistributedDataset
from perennial.training.baseline_models import fit_baselines
from perennial.training.checkpoint import Checkpoint
from perennial.training.dask_cluster import WorkerPool, worker_pool
from perennial.training._dataset import build_dataset
from perennial.training.search import FitResult, search_and_fit
from perennial.training.windows import Windows, split_partitions
from support import lake, toys

Make = Callable[..., ModelSpec]
HOW = Binning(256, threads=1, external=False)
SEARCH = {
    "trials": 2,
    "space": {"max_depth": {"choices": [2, 3, 4]}, "learning_rate": {"low": 0.1, "high": 0.5}},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerPool]:
    """Two workers, for all tests that do not lose them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERENNIAL_HOME", str(tmp_path_factory.mktemp("crew")))
        with worker_pool(2) as found:
            yield found


@pytest.fixture
def make(house: Path, tmp_path: Path) -> Make:
    def make(task: str = "binary", **changes: Any) -> ModelSpec:
        spec = toys.model(tmp_path / "models", toys.unique(), task, **changes)
        toys.publish(spec)
        return spec

    return make


def split(spec: ModelSpec) -> Windows:
    return split_partitions(
        spec, toys.LAST, delta_tables.partitions(delta_tables.table_uri("labels", spec.name))
    )


def source(spec: ModelSpec) -> tuple[DatasetRef, FeatureQuery]:
    features = FeatureQuery(spec)
    at = (delta_tables.version(delta_tables.table_uri(kind, spec.name)) for kind in ("published", "labels"))
    return DatasetRef(spec, features.reference_versions, *at), features


def share(spec: ModelSpec, two: WorkerPool) -> DistributedDataset:
    known, features = source(spec)
    _tell(two)
    return distributed_dataset.build_distributed_dataset(two, known, split(spec), tuple(features.columns))


def _tell(two: WorkerPool, **more: str) -> None:
    """Workers read the lake of this test, not that of the first."""
    mine = {k: v for k, v in os.environ.items() if k.startswith("PERENNIAL_")}
    two.client.run(lambda told: os.environ.update(told), mine | more)


def here(spec: ModelSpec, folder: Path) -> Any:
    known, features = source(spec)
    return build_dataset(spec, features, split(spec), folder, known.version, known.labels_version)


def loss(spec: ModelSpec, fitted: FitResult, data: Any, x: np.ndarray, y: np.ndarray) -> float:
    """A plain loss of the fitted model on some rows, whatever the task."""
    found = TrainedModel(fitted.booster, data.encoding, spec.task, data.classes).predict_matrix(x)
    if found.ndim == 2:
        return float(-np.log(np.clip(found[np.arange(len(y)), y.astype(int)], 1e-6, 1)).mean())
    return float(((found - y) ** 2).mean())


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression", "ranking"])
def test_two_workers_learn_what_one_process_learns(
    make: Make, two: WorkerPool, tmp_path: Path, task: str
) -> None:
    spec = make(task)
    one, both = here(spec, tmp_path), share(spec, two)
    assert (both.fit, both.rows, both.classes, both.encoding) == (
        one.fit,
        one.rows,
        one.classes,
        one.encoding,
    )
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
    assert set(fit_baselines(spec, both)) == set(fit_baselines(spec, one))


def test_rows_are_read_where_they_stay_and_shared_out_evenly(make: Make, two: WorkerPool) -> None:
    both = share(make(), two)
    held = {w: sum(p.rows for p in both.parts if p.worker == w) for w in two.addresses}
    assert max(held.values()) - min(held.values()) <= 2 * toys.ROWS
    assert [p.first for p in both.parts] == list(np.cumsum([0, *(p.rows for p in both.parts[:-1])]))
    matrix = both.dmatrix(0, both.rows, HOW)
    assert {w: len(parts) for w, parts in matrix.worker_map.items()} == {
        w: sum(p.worker == w for p in both.parts) for w in two.addresses
    }


def test_the_same_again_gives_the_same_model(make: Make, two: WorkerPool) -> None:
    spec = make(training={"rounds": 5, "search": SEARCH})
    one, again = (search_and_fit(spec, share(spec, two)) for _ in range(2))
    assert [t.params for t in one.trials] == [t.params for t in again.trials] and len(one.trials) == 2
    assert one.booster.save_raw("ubj") == again.booster.save_raw("ubj")


def test_rounds_stop_where_the_validation_rows_say(make: Make, two: WorkerPool) -> None:
    spec = make(training={"rounds": 200, "early_stopping_rounds": 3, "params": {"learning_rate": 1.0}})
    found = search_and_fit(spec, share(spec, two))
    assert found.rounds < 100 and found.booster.num_boosted_rounds() == found.rounds


def test_a_category_that_one_worker_never_saw_has_one_code(make: Make, two: WorkerPool) -> None:
    spec = make()
    table = lake.read_table(delta_tables.table_uri("published", spec.name))
    import pyarrow as pa

    last = table["partition_date"].to_pylist()
    k = ["aa" if day == toys.FIRST else old for day, old in zip(last, table["k"].to_pylist(), strict=True)]
    table = table.set_column(table.column_names.index("k"), "k", pa.array(k))
    delta_tables.replace(delta_tables.table_uri("published", spec.name), table, toys.FIRST, toys.LAST)
    both = share(spec, two)
    assert both.encoding.categories == {"k": ["a", "aa", "b", "c"]}
    at = both.encoding.columns.index("k")
    assert set(both.head(toys.ROWS)[:, at]) == {1.0}


def test_what_was_interrupted_goes_on(make: Make, two: WorkerPool, tmp_path: Path, monkeypatch: Any) -> None:
    spec = make(training={"rounds": 40, "early_stopping_rounds": 40})
    both, place = share(spec, two), str(tmp_path / "checkpoint")
    whole = search_and_fit(spec, both)
    base = {k: v for k, v in whole.params.items() if k not in whole.trials[0].params}
    train_rows = both.dmatrix(0, both.fit, HOW)
    valid = both.dmatrix(both.fit, both.rows, HOW, ref=train_rows)
    _tell(two, PERENNIAL_CHECKPOINT_SECONDS="0")
    both.boost("trial 0", base, train_rows, 9, Checkpoint(place), valid=valid, patience=40)
    checkpoint = Checkpoint(place)
    booster, losses = both.boost("trial 0", base, train_rows, 40, checkpoint, valid=valid, patience=40)
    assert checkpoint.resumed == 9 and len(losses) == 40
    again, straight = both.boost("t", base, train_rows, 40, Checkpoint(None), valid=valid, patience=40)
    assert losses == pytest.approx(straight, abs=1e-6)
    assert booster.num_boosted_rounds() == again.num_boosted_rounds() == 40
    # one whose patience is at its end is not boosted again
    kept = xgboost.Booster(model_file=bytearray(booster.save_raw("ubj")))
    monkeypatch.setenv("PERENNIAL_CHECKPOINT_SECONDS", "0")
    Checkpoint(place).keep("trial 1", kept, [0.1, 0.2, 0.3])
    assert both.boost("trial 1", base, train_rows, 90, Checkpoint(place), patience=2)[1] == [0.1, 0.2, 0.3]


def test_errors_of_workers_keep_their_words(make: Make, two: WorkerPool) -> None:
    spec = make()
    table = lake.read_table(delta_tables.table_uri("labels", spec.name))
    import pyarrow as pa

    same = table.set_column(table.column_names.index("label"), "label", pa.array([1] * len(table)))
    delta_tables.replace(delta_tables.table_uri("labels", spec.name), same, toys.FIRST, toys.LAST)
    with pytest.raises(DataError, match="training rows have the same label"):
        share(spec, two)
    with pytest.raises(PerennialError, match=r"training\.device is cuda, but XGBoost found no GPU"):
        search_and_fit(make(training={"device": "cuda"}), share(make(), two))


def test_the_step_says_how_many_workers_ran(registry_house: Path, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", toys.unique())
    toys.publish(spec)
    alone = train(spec, as_of=toys.LAST)
    done = train(spec, as_of=toys.LAST, force=True, workers=2)
    assert (alone["workers"], done["workers"]) == (1, 2)
    assert alone["rows"] == done["rows"] and done["gate"]["passed"]
    for name, value in alone["metrics"].items():
        assert done["metrics"][name] == pytest.approx(value, rel=0.1, abs=0.02), name
    kept = manifests.read(spec.name, "train", toys.LAST)
    assert kept is not None and kept.result["workers"] == 2
    assert registry.get_version(spec.name, done["version"]).digest == done["digest"]


@pytest.mark.parametrize("when", ["reading", "boosting"])
def test_a_lost_worker_is_an_interruption(make: Make, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    spec = make(training={"rounds": 10_000, "early_stopping_rounds": 1000})
    monkeypatch.setenv("PERENNIAL_CHECKPOINT_SECONDS", "0")
    place = Checkpoint.of(spec.name, toys.LAST, {"workers": 2})
    began = time.monotonic()
    with pytest.raises(StepInterruptedError, match="1 of 2 workers lost"), worker_pool(2) as found:
        (pid,) = found.client.run(os.getpid, workers=[found.addresses[1]]).values()
        if when == "reading":
            asleep = found.client.submit(time.sleep, 600, workers=[found.addresses[1]])
            os.kill(pid, signal.SIGKILL)
            asleep.result()
        else:
            known, features = source(spec)
            both = distributed_dataset.build_distributed_dataset(
                found, known, split(spec), tuple(features.columns)
            )
            threading.Thread(target=_kill_once_it_boosts, args=(pid, place), daemon=True).start()
            search_and_fit(spec, both, checkpoint=place)
    assert time.monotonic() - began < 90
    if when == "boosting":
        again = Checkpoint.of(spec.name, toys.LAST, {"workers": 2})
        assert again.booster("trial 0")[0] and again.resumed > 0


def _kill_once_it_boosts(pid: int, place: Checkpoint) -> None:
    while not object_store.exists(f"{place.uri}/trial-0.ubj"):
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def meeting(house: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PERENNIAL_WORKERS_MINUTES", "0.5")
    return str(house / "meeting.json")


def worker(meeting: str, rank: int, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "perennial", "worker", "--meeting", meeting, "--rank", str(rank), *more]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(Path(dask_cluster.__file__).parents[2])},
                            stderr=subprocess.PIPE, text=True)  # fmt: skip


def test_workers_elsewhere_find_the_trainer_and_leave_with_it(make: Make, meeting: str) -> None:
    spec = make(training={"rounds": 3})
    started = [worker(meeting, rank, "--library-digest", runtime.library_digest()) for rank in (0, 1)]
    try:
        with worker_pool(2, meeting) as found:
            assert json.loads(object_store.read_text(meeting))["scheduler"].startswith("tcp://")
            known, features = source(spec)
            fitted = search_and_fit(
                spec,
                distributed_dataset.build_distributed_dataset(
                    found, known, split(spec), tuple(features.columns)
                ),
            )
            assert fitted.booster.num_boosted_rounds() == fitted.rounds
        assert [process.wait(30) for process in started] == [0, 0]
        assert not object_store.exists(meeting)
    finally:
        for process in started:
            process.kill()


def test_who_does_not_come_is_told(meeting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_WORKERS_MINUTES", "0.02")
    with (
        pytest.raises(WorkersUnavailableError, match=r"0 of 2 workers came within 0\.02 minutes"),
        worker_pool(2, meeting),
    ):
        pass
    with pytest.raises(WorkersUnavailableError, match="no trainer came to"):
        dask_cluster.run_worker(meeting, 0)
    object_store.write_text(meeting, '{"scheduler": "tcp://127.0.0.1:9"}')  # where nobody listens
    with pytest.raises(WorkersUnavailableError, match="the trainer cannot be reached"):
        dask_cluster.run_worker(meeting, 0)


def test_a_worker_of_another_library_does_not_begin(meeting: str) -> None:
    process = worker(meeting, 0, "--library-digest", "0" * 64)
    assert process.wait(60) == 1
    assert process.stderr and "its caller's is 000000000000" in process.stderr.read()
