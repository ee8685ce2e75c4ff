"""Use of the GPUs while a model is fitted, from the driver: names, memory, utilization."""

from __future__ import annotations

import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypedDict

log = logging.getLogger("perennial")
_QUERY = ["--query-gpu=name,memory.total,memory.used,utilization.gpu", "--format=csv,noheader,nounits"]
#: Seconds between two queries.
QUERY_SECONDS = 1.0
#: Timeout of one query, in seconds.
TIMEOUT_SECONDS = 10.0


class GpuReport(TypedDict):
    """Use of the GPUs of one or several machines.

    Attributes:
        names: names of the GPUs.
        memory_mb: memory of all GPUs, in MiB.
        peak_memory_mb: peak of the used memory of all GPUs, in MiB.
        utilization: mean utilization, in per cent.
        seconds: duration of the monitoring.
    """

    names: list[str]
    memory_mb: int
    peak_memory_mb: int
    utilization: float
    seconds: float


class GpuMonitor:
    """Monitors the GPUs of this machine (those of ``CUDA_VISIBLE_DEVICES`` in a pod) while a block runs.

    It queries ``nvidia-smi``, which every GPU container has from the host's driver. Without it, it reports nothing.

    Args:
        enabled: False monitors nothing.
    """

    def __init__(self, enabled: bool = True) -> None:
        self._tool = shutil.which("nvidia-smi") if enabled else None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._names: list[str] = []
        self._total = self._peak = 0.0
        self._utilizations: list[float] = []
        self._started = time.monotonic()
        self._seconds = 0.0

    def __enter__(self) -> Self:
        if self._tool:
            self._thread = threading.Thread(target=self._run, name="gpu", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(TIMEOUT_SECONDS)
        self._seconds = round(time.monotonic() - self._started, 3)

    def report(self) -> GpuReport | None:
        """The measurements; None without a GPU."""
        if not self._names:
            return None
        return {
            "names": self._names,
            "memory_mb": round(self._total),
            "peak_memory_mb": round(self._peak),
            "utilization": round(sum(self._utilizations) / len(self._utilizations), 1),
            "seconds": self._seconds,
        }

    def _run(self) -> None:
        while True:
            try:
                self._query()
            except (OSError, subprocess.SubprocessError, ValueError) as error:
                log.warning("The GPU is not monitored, because nvidia-smi failed: %s", error)
                return
            if self._stop.wait(QUERY_SECONDS):
                return

    def _query(self) -> None:
        assert self._tool
        process = subprocess.run(
            [self._tool, *_QUERY], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True
        )
        rows = [
            [cell.strip() for cell in line.rsplit(",", 3)]
            for line in process.stdout.splitlines()
            if line.strip()
        ]
        total, memory, utilization = (sum(float(row[i]) for row in rows) for i in (1, 2, 3))
        self._names, self._total, self._peak = [row[0] for row in rows], total, max(self._peak, memory)
        self._utilizations.append(utilization / max(1, len(rows)))


@contextmanager
def monitor_gpus(enabled: bool) -> Iterator[list[GpuReport]]:
    """Monitor the GPUs of this machine while the block runs; the list has their report when it ends.

    Args:
        enabled: False monitors nothing.
    """
    reports: list[GpuReport] = []
    monitor = GpuMonitor(enabled)
    try:
        with monitor:
            yield reports
    finally:
        if report := monitor.report():
            reports.append(report)


def start_on_worker(dask_worker: Any) -> None:
    """Start monitoring the GPUs of a Dask worker; it stores the monitor until `stop_on_worker`."""
    dask_worker.gpu_monitor = GpuMonitor().__enter__()


def stop_on_worker(dask_worker: Any) -> GpuReport | None:
    """Stop the monitor of `start_on_worker`; returns its report, None without a GPU."""
    monitor: GpuMonitor = dask_worker.gpu_monitor
    monitor.__exit__()
    return monitor.report()


def combine_reports(reports: list[GpuReport]) -> GpuReport | None:
    """Combine the reports of several machines; None if there are none.

    Returns:
        All names; the sums of memory and of its peaks; the mean utilization; the longest time.
    """
    if not reports:
        return None
    return {
        "names": [name for r in reports for name in r["names"]],
        "memory_mb": sum(r["memory_mb"] for r in reports),
        "peak_memory_mb": sum(r["peak_memory_mb"] for r in reports),
        "utilization": round(sum(r["utilization"] for r in reports) / len(reports), 1),
        "seconds": max(r["seconds"] for r in reports),
    }
