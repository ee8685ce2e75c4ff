"""A pool of Dask workers that fit one model together.

The scheduler runs in this process, the workers on this machine or in pods. A trainer and workers in pods find each
other through the lake: the trainer writes its scheduler's address to a *rendezvous*, a file that its workers wait for.
Dask's messages are neither encrypted nor signed, and any client of the scheduler can run code in its workers, so a
network policy (docker/kubernetes/network.yaml) isolates them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perennial.core.errors import PerennialError, StepInterruptedError, WorkersUnavailableError
from perennial.core.settings import settings
from perennial.storage import object_store

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("perennial")
#: Minutes that a trainer and its workers wait for each other; PERENNIAL_WORKERS_MINUTES overrides it.
WAIT_MINUTES = 10.0
#: Seconds between two reads of the rendezvous.
POLL_SECONDS = 1.0
#: Seconds after an error within which the scheduler notices that a lost worker caused it.
LOST_WORKER_SECONDS = 5.0
#: Seconds that worker processes have to end once the pool is closed.
SHUTDOWN_SECONDS = 10.0
#: Dask's status pages cannot be disabled, but are not reachable from other machines.
_DASHBOARD_ADDRESS = "127.0.0.1:0"
_CONFIG = {
    # Rows stay on the worker that read them.
    "distributed.scheduler.work-stealing": False,
    # Each task belongs to one worker, and cannot run on another one if that is lost.
    "distributed.scheduler.allowed-failures": 0,
}


@dataclass(frozen=True)
class WorkerPool:
    """Connected workers.

    Attributes:
        client: Dask's client of the scheduler.
        addresses: addresses of the workers, by rank.
        same_machine: whether they share this machine.
    """

    client: Client
    addresses: tuple[str, ...]
    same_machine: bool

    @property
    def threads(self) -> int:
        """Threads that each worker may use."""
        return max(1, settings().threads // len(self.addresses)) if self.same_machine else settings().threads


@contextmanager
def worker_pool(count: int, rendezvous: str | None = None) -> Iterator[WorkerPool]:
    """Connect to workers while the block runs.

    Args:
        count: number of workers.
        rendezvous: URI of the file where workers that run elsewhere (`run_worker`) read this scheduler's address;
            None: start the workers as processes of this machine.

    Raises:
        WorkersUnavailableError: they did not connect in time.
        StepInterruptedError: one was lost while the block ran.
    """
    import dask
    from distributed import Client, LocalCluster
    from distributed.utils import get_ip

    uri = rendezvous or f"{_working_folder()}/{uuid.uuid4().hex}.rendezvous.json"
    with (
        dask.config.set(_CONFIG),
        LocalCluster(
            n_workers=0, threads_per_worker=1, memory_limit=0, dashboard_address=None,
            local_directory=_working_folder(), host=get_ip() if rendezvous else "127.0.0.1",
            scheduler_kwargs={"dashboard_address": _DASHBOARD_ADDRESS},
        ) as cluster,
        Client(cluster) as client,
        _worker_processes(0 if rendezvous else count, uri),
    ):  # fmt: skip
        closing, lost = threading.Event(), list[str]()
        try:
            object_store.write_text(uri, json.dumps({"scheduler": cluster.scheduler_address}))
            client.forward_logging(log.name, level=logging.INFO)  # the workers' log is part of this one
            log.info("The scheduler is %s; waiting for %d workers", cluster.scheduler_address, count)
            pool = WorkerPool(client, _wait_for_workers(client, count), rendezvous is None)
            cluster.scheduler.add_plugin(_lost_worker_plugin(pool, lost, closing))
            yield pool
        except PerennialError:
            raise
        except Exception as error:
            _raise_if_lost(lost, count, error)
            raise
        finally:
            closing.set()
            object_store.delete_file(uri)
            client.close()
            cluster.close()  # workers end when their scheduler does


def _raise_if_lost(lost: list[str], count: int, error: Exception) -> None:
    """Raise `StepInterruptedError` if a lost worker caused the error.

    The other workers fail a moment before the scheduler notices that one is lost.
    """
    deadline = time.monotonic() + LOST_WORKER_SECONDS
    while not lost and time.monotonic() < deadline:
        time.sleep(0.1)
    if lost:
        raise StepInterruptedError(
            f"{len(lost)} of {count} workers lost ({', '.join(lost)}): {str(error).strip()[:300]}",
            "check the worker's node and memory; another attempt continues from the checkpoint",
        ) from error


@contextmanager
def _worker_processes(count: int, rendezvous: str) -> Iterator[None]:
    """Start workers on this machine, which end with the block.

    LocalCluster's own workers import the main module of this process again, which is impossible in an Airflow task.
    """
    command = [sys.executable, "-m", "perennial", "worker", "--rendezvous", rendezvous, "--rank"]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = [subprocess.Popen([*command, str(rank)], env=environ) for rank in range(count)]
    try:
        yield
    finally:
        for process in processes:
            try:
                process.wait(SHUTDOWN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run_worker(rendezvous: str, rank: int) -> None:
    """Run a worker until its trainer has finished.

    Args:
        rendezvous: URI of the file with the address of the trainer's scheduler.
        rank: number of this worker, from 0.

    Raises:
        WorkersUnavailableError: no trainer started in time, or it cannot be reached.
    """
    import dask
    from distributed import Worker

    async def serve() -> None:
        async with Worker(
            _scheduler_address(rendezvous), nthreads=1, name=rank, memory_limit=0,
            local_directory=_working_folder(), death_timeout=wait_seconds(), dashboard_address=_DASHBOARD_ADDRESS,
        ) as worker:  # fmt: skip
            await worker.finished()

    log.setLevel(logging.INFO)  # what it logs is forwarded to the trainer
    # Its own lines go to standard error, which Airflow shows as errors; the orderly end of a pool has a traceback.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    with dask.config.set(_CONFIG):
        try:
            asyncio.run(serve())
        except (OSError, TimeoutError) as error:
            raise WorkersUnavailableError(
                f"the trainer cannot be reached: {error}",
                "see the trainer's log, and whether network policies let workers reach it",
            ) from error


def wait_seconds() -> float:
    """Seconds that a trainer and its workers wait for each other."""
    return float(os.environ.get("PERENNIAL_WORKERS_MINUTES") or WAIT_MINUTES) * 60


def _working_folder() -> str:
    folder = settings().home / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def _wait_for_workers(client: Client, count: int) -> tuple[str, ...]:
    """Addresses of the workers, by rank, once all have connected."""
    timed_out = False
    try:
        client.wait_for_workers(count, timeout=wait_seconds())
    except TimeoutError:
        timed_out = True
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if timed_out:
        raise WorkersUnavailableError(
            f"{len(workers)} of {count} workers connected within {wait_seconds() / 60:g} minutes",
            "if the other workers run, check that network policies allow connections to the trainer; otherwise use "
            "fewer or smaller workers",
        )
    # XGBoost ranks workers by name: the same rows in the same order give the same model.
    return tuple(sorted(workers, key=lambda address: int(workers[address]["name"])))


def _lost_worker_plugin(pool: WorkerPool, lost: list[str], closing: threading.Event) -> Any:
    """A scheduler plugin that closes the client when a worker is lost before the pool is closed.

    XGBoost fails in this case, but a task that only the lost worker can run would be awaited forever.
    """
    from distributed import SchedulerPlugin

    class LostWorkerPlugin(SchedulerPlugin):  # type: ignore[misc]
        def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
            if worker in pool.addresses and not closing.is_set():
                lost.append(worker)
                log.warning("Worker %s is lost", worker)
                threading.Thread(target=pool.client.close, daemon=True).start()

    return LostWorkerPlugin()


def _scheduler_address(rendezvous: str) -> str:
    deadline = time.monotonic() + wait_seconds()
    while time.monotonic() < deadline:
        try:
            return str(json.loads(object_store.read_text(rendezvous))["scheduler"])
        except FileNotFoundError:
            time.sleep(POLL_SECONDS)
    raise WorkersUnavailableError(
        f"no trainer wrote its address to {rendezvous} within {wait_seconds() / 60:g} minutes",
        "see the trainer's log",
    )
