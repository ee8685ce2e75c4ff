"""The pool of workers: how trainer and workers find each other, and what a lost worker does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from perennial.core import runtime
from perennial.core.errors import StepInterruptedError, WorkersUnavailableError
from perennial.spec.model_spec import ModelSpec
from perennial.storage import object_store
from perennial.training import dask_cluster
from perennial.training.checkpoint import Checkpoint
from perennial.training.dask_cluster import worker_pool
from perennial.training.search import search_and_fit
from support import toys, training_rows

Make = Callable[..., ModelSpec]


@pytest.mark.parametrize("when", ["reading", "boosting"])
def test_a_lost_worker_is_an_interruption(make: Make, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    spec = make(training={"rounds": 10_000, "early_stopping_rounds": 1000})
    monkeypatch.setenv("PERENNIAL_CHECKPOINT_SECONDS", "0")
    checkpoint = Checkpoint.for_inputs(spec.name, toys.LAST, {"workers": 2})
    began = time.monotonic()
    with pytest.raises(StepInterruptedError, match="1 of 2 workers lost"), worker_pool(2) as pool:
        (pid,) = pool.client.run(os.getpid, workers=[pool.addresses[1]]).values()
        if when == "reading":
            asleep = pool.client.submit(time.sleep, 600, workers=[pool.addresses[1]])
            os.kill(pid, signal.SIGKILL)
            asleep.result()
        else:
            data = training_rows.on_workers(spec, pool)
            threading.Thread(target=_kill_once_it_boosts, args=(pid, checkpoint), daemon=True).start()
            search_and_fit(spec, data, checkpoint=checkpoint)
    assert time.monotonic() - began < 90
    if when == "boosting":
        again = Checkpoint.for_inputs(spec.name, toys.LAST, {"workers": 2})
        assert again.load_booster("trial 0")[0] and again.resumed > 0


def _kill_once_it_boosts(pid: int, checkpoint: Checkpoint) -> None:
    while not object_store.exists(f"{checkpoint.uri}/trial-0.ubj"):
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def rendezvous(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PERENNIAL_WORKERS_MINUTES", "0.5")
    return str(empty_home / "rendezvous.json")


def worker(rendezvous: str, rank: int, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "perennial",
        "worker",
        "--rendezvous",
        rendezvous,
        "--rank",
        str(rank),
        *more,
    ]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(Path(dask_cluster.__file__).parents[2])},
                            stderr=subprocess.PIPE, text=True)  # fmt: skip


def test_workers_elsewhere_find_the_trainer_and_leave_with_it(make: Make, rendezvous: str) -> None:
    spec = make(training={"rounds": 3})
    started = [worker(rendezvous, rank, "--library-digest", runtime.library_digest()) for rank in (0, 1)]
    try:
        with worker_pool(2, rendezvous) as pool:
            assert json.loads(object_store.read_text(rendezvous))["scheduler"].startswith("tcp://")
            fitted = search_and_fit(spec, training_rows.on_workers(spec, pool))
            assert fitted.booster.num_boosted_rounds() == fitted.rounds
        assert [process.wait(30) for process in started] == [0, 0]
        assert not object_store.exists(rendezvous)
    finally:
        for process in started:
            process.kill()


def test_who_does_not_come_is_told(rendezvous: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_WORKERS_MINUTES", "0.02")
    with (
        pytest.raises(WorkersUnavailableError, match=r"0 of 2 workers connected within 0\.02 minutes"),
        worker_pool(2, rendezvous),
    ):
        pass
    with pytest.raises(WorkersUnavailableError, match="no trainer wrote its address to"):
        dask_cluster.run_worker(rendezvous, 0)
    object_store.write_text(rendezvous, '{"scheduler": "tcp://127.0.0.1:9"}')  # where nobody listens
    with pytest.raises(WorkersUnavailableError, match="the trainer cannot be reached"):
        dask_cluster.run_worker(rendezvous, 0)


def test_a_worker_of_another_library_does_not_begin(rendezvous: str) -> None:
    process = worker(rendezvous, 0, "--library-digest", "0" * 64)
    assert process.wait(60) == 1
    assert process.stderr and "the caller's has 000000000000" in process.stderr.read()
