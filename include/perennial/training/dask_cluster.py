"""Workers that train together: Dask's scheduler in this process, its workers in others, here or in pods of their own.

Trainer and workers in pods find each other through the lake: the trainer writes its scheduler's address to a *meeting*,
a file that its workers wait for. Dask's messages are neither encrypted nor signed, and whoever reaches the scheduler
can run code in its workers: a network policy (docker/kubernetes/network.yaml) lets nobody else reach them.
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
#: Minutes that trainer and workers wait for each other, unless PERENNIAL_WORKERS_MINUTES says another number.
WAIT_MINUTES = 10.0
#: Seconds between two looks for the meeting, and after which a worker that failed the others is known to be lost.
POLL_SECONDS, LOST_WORKER_SECONDS = 1.0, 5.0
#: Seconds that workers have to leave when the work is done.
SHUTDOWN_SECONDS = 10.0
#: Dask's own status pages cannot be left out, but need not be reached from elsewhere.
_NO_PAGES = "127.0.0.1:0"
_CONFIG = {
    # Rows stay with the worker that read them.
    "distributed.scheduler.work-stealing": False,
    # Each task is there for one worker; where that is lost, trying it elsewhere helps nobody.
    "distributed.scheduler.allowed-failures": 0,
}


@dataclass(frozen=True)
class WorkerPool:
    """Workers at work.

    Attributes:
        addresses: of the workers, by rank.
        together: whether they share one machine.
    """

    client: Client
    addresses: tuple[str, ...]
    together: bool

    @property
    def threads(self) -> int:
        """Threads that each may use."""
        return max(1, settings().threads // len(self.addresses)) if self.together else settings().threads


@contextmanager
def worker_pool(count: int, meeting: str | None = None) -> Iterator[WorkerPool]:
    """So many workers, as long as the block runs.

    Args:
        meeting: URI where workers in other places look for this scheduler (`serve`); None: processes of this machine.

    Raises:
        Absent: they did not come. Interrupted: one was lost while the block ran.
    """
    import dask
    from distributed import Client, LocalCluster
    from distributed.utils import get_ip

    at = meeting or f"{_folder()}/{uuid.uuid4().hex}.meeting.json"
    with (
        dask.config.set(_CONFIG),
        LocalCluster(
            n_workers=0, threads_per_worker=1, memory_limit=0, dashboard_address=None, local_directory=_folder(),
            host=get_ip() if meeting else "127.0.0.1", scheduler_kwargs={"dashboard_address": _NO_PAGES},
        ) as cluster,
        Client(cluster) as client,
        _processes(0 if meeting else count, at),
    ):  # fmt: skip
        over, lost = threading.Event(), list[str]()
        try:
            object_store.write_text(at, json.dumps({"scheduler": cluster.scheduler_address}))
            log.info("The scheduler is %s; %d workers are waited for", cluster.scheduler_address, count)
            here = WorkerPool(client, _wait_for_workers(client, count), meeting is None)
            cluster.scheduler.add_plugin(_watch(here, lost, over))
            yield here
        except PerennialError:
            raise
        except Exception as error:
            # The error of those that are left comes a moment before the scheduler misses the one that is not.
            deadline = time.monotonic() + LOST_WORKER_SECONDS
            while not lost and time.monotonic() < deadline:
                time.sleep(0.1)
            if not lost:
                raise
            raise StepInterruptedError(
                f"{len(lost)} of {count} workers lost ({', '.join(lost)}): {str(error).strip()[:300]}",
                "look at the worker's node and memory; another attempt goes on from the checkpoint",
            ) from error
        finally:
            over.set()
            object_store.delete_file(at)
            client.close()
            cluster.close()  # workers leave when their scheduler does


@contextmanager
def _processes(count: int, meeting: str) -> Iterator[None]:
    """Workers on this machine, gone with the block.

    LocalCluster's own would import again what this process was started as, and Airflow, in a task, cannot be.
    """
    command = [sys.executable, "-m", "perennial", "worker", "--meeting", meeting, "--rank"]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    started = [subprocess.Popen([*command, str(rank)], env=environ) for rank in range(count)]
    try:
        yield
    finally:
        for process in started:
            try:
                process.wait(SHUTDOWN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run_worker(meeting: str, rank: int) -> None:
    """Be a worker of the trainer whose address is at ``meeting``, until it has done.

    Raises:
        Absent: no trainer came, or it cannot be reached.
    """
    import dask
    from distributed import Worker

    async def work() -> None:
        async with Worker(
            _address(meeting), nthreads=1, name=rank, memory_limit=0, local_directory=_folder(),
            death_timeout=wait_seconds(), dashboard_address=_NO_PAGES,
        ) as worker:  # fmt: skip
            await worker.finished()

    with dask.config.set(_CONFIG):
        try:
            asyncio.run(work())
        except (OSError, TimeoutError) as error:
            raise WorkersUnavailableError(
                f"the trainer cannot be reached: {error}",
                "see the trainer's own log, and whether network policies let workers reach it",
            ) from error


def wait_seconds() -> float:
    """Seconds that trainer and workers wait for each other."""
    return float(os.environ.get("PERENNIAL_WORKERS_MINUTES") or WAIT_MINUTES) * 60


def _folder() -> str:
    place = settings().home / "tmp"
    place.mkdir(parents=True, exist_ok=True)
    return str(place)


def _wait_for_workers(client: Client, count: int) -> tuple[str, ...]:
    """Addresses of the workers, in the order of their ranks, once all are there."""
    late = False
    try:
        client.wait_for_workers(count, timeout=wait_seconds())
    except TimeoutError:
        late = True
    found = client.scheduler_info(n_workers=-1)["workers"]
    if late:
        raise WorkersUnavailableError(
            f"{len(found)} of {count} workers came within {wait_seconds() / 60:g} minutes",
            "if the others run, let them reach this one (network policies); else ask for fewer or smaller ones",
        )
    # XGBoost ranks them by name: the same shares of the rows in the same order give the same model.
    return tuple(sorted(found, key=lambda address: int(found[address]["name"])))


def _watch(crew: WorkerPool, lost: list[str], over: threading.Event) -> Any:
    """A plugin of the scheduler that ends all waiting when a worker is ``lost`` before all is ``over``.

    XGBoost fails then by itself, but what only one worker can do would be waited for without end.
    """
    from distributed import SchedulerPlugin

    class Watch(SchedulerPlugin):  # type: ignore[misc]
        def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
            if worker in crew.addresses and not over.is_set():
                lost.append(worker)
                log.warning("Worker %s is lost", worker)
                threading.Thread(target=crew.client.close, daemon=True).start()

    return Watch()


def _address(meeting: str) -> str:
    deadline = time.monotonic() + wait_seconds()
    while time.monotonic() < deadline:
        try:
            return str(json.loads(object_store.read_text(meeting))["scheduler"])
        except FileNotFoundError:
            time.sleep(POLL_SECONDS)
    raise WorkersUnavailableError(
        f"no trainer came to {meeting} within {wait_seconds() / 60:g} minutes",
        "see the trainer's own log",
    )
