"""What the GPU did while a training ran, as the driver counts it: name, memory, utilisation."""

from __future__ import annotations

import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

log = logging.getLogger("perennial")
_QUERY = ["--query-gpu=name,memory.total,memory.used,utilization.gpu", "--format=csv,noheader,nounits"]
#: Seconds between two looks, and how long the driver may take to answer.
EVERY, PATIENCE = 1.0, 10.0


class GpuMonitor:
    """Watches the GPUs of this machine (``CUDA_VISIBLE_DEVICES`` of a pod are all it has) while a block runs.

    It asks ``nvidia-smi``, which every GPU container has from the host's driver. Without one it watches nothing.
    """

    def __init__(self, wanted: bool = True) -> None:
        self._tool = shutil.which("nvidia-smi") if wanted else None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._names: list[str] = []
        self._total = self._peak = 0.0
        self._used: list[float] = []
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        if self._tool:
            self._thread = threading.Thread(target=self._watch, name="gpu", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(PATIENCE)
        self.seconds = round(time.monotonic() - self._began, 3)

    def report(self) -> dict[str, Any] | None:
        """Names, memory_mb (of all), peak_memory_mb, utilization (mean per cent), seconds; None without a GPU."""
        if not self._names:
            return None
        return {
            "names": self._names,
            "memory_mb": round(self._total),
            "peak_memory_mb": round(self._peak),
            "utilization": round(sum(self._used) / len(self._used), 1),
            "seconds": self.seconds,
        }

    def _watch(self) -> None:
        while True:
            try:
                self._look()
            except (OSError, subprocess.SubprocessError, ValueError) as error:
                log.warning("nvidia-smi does not tell what the GPU does: %s", error)
                return
            if self._stop.wait(EVERY):
                return

    def _look(self) -> None:
        assert self._tool
        told = subprocess.run(
            [self._tool, *_QUERY], capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        rows = [
            [cell.strip() for cell in line.rsplit(",", 3)]
            for line in told.stdout.splitlines()
            if line.strip()
        ]
        total, memory, used = (sum(float(row[i]) for row in rows) for i in (1, 2, 3))
        self._names, self._total, self._peak = [row[0] for row in rows], total, max(self._peak, memory)
        self._used.append(used / max(1, len(rows)))


_here: GpuMonitor | None = None


@contextmanager
def watched(ask: Callable[..., list[Any]], wanted: bool) -> Iterator[list[dict[str, Any]]]:
    """Watch while the block runs wherever ``ask`` asks; what each place reports is in the list when it ends."""
    reports: list[dict[str, Any]] = []
    ask(_begin, wanted)
    try:
        yield reports
    finally:
        reports += [found for found in ask(_end) if found]


def _begin(wanted: bool) -> None:
    global _here
    _here = GpuMonitor(wanted).__enter__()


def _end() -> dict[str, Any] | None:
    assert _here
    _here.__exit__()
    return _here.report()


def combine_reports(reports: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Reports of several places as one: all names, memory and its peaks in sum, mean utilization; None without any."""
    if not reports:
        return None
    return {
        "names": [name for r in reports for name in r["names"]],
        "memory_mb": sum(r["memory_mb"] for r in reports),
        "peak_memory_mb": sum(r["peak_memory_mb"] for r in reports),
        "utilization": round(sum(r["utilization"] for r in reports) / len(reports), 1),
        "seconds": max(r["seconds"] for r in reports),
    }
