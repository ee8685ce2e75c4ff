"""What the driver's tool says becomes figures; a script answers in its place, since few machines have a GPU."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from perennial.training import _gpu_monitor, gpu_monitor


def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = tmp_path / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")


def test_figures_are_of_all_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, monkeypatch, "echo 'NVIDIA H200, 143771, 1000, 90'; echo 'NVIDIA H200, 143771, 3000, 50'")
    with _gpu_monitor.GpuMonitor() as watch:
        time.sleep(0.2)
    report = watch.report()
    assert report is not None and report.pop("seconds") > 0
    assert report == {
        "names": ["NVIDIA H200"] * 2,
        "memory_mb": 287542,
        "peak_memory_mb": 4000,
        "utilization": 70.0,
    }


@pytest.mark.parametrize("script", ["exit 9", "echo 'NVIDIA H200, [N/A], 1, 2'", ""])
def test_a_tool_that_does_not_work_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    tool(tmp_path, monkeypatch, script)
    with _gpu_monitor.GpuMonitor() as watch:
        pass
    assert watch.report() is None


def test_without_a_gpu_nothing_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with _gpu_monitor.GpuMonitor() as watch:
        pass
    assert watch.report() is None
    with _gpu_monitor.GpuMonitor(wanted=False) as watch:
        pass
    assert watch.report() is None


def test_places_are_watched_and_their_reports_become_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path, monkeypatch, "echo 'NVIDIA H200, 143771, 1000, 90'")

    def ask(function: Any, *args: Any) -> list[Any]:
        return [function(*args)]

    with _gpu_monitor.watched(ask, True) as reports:
        time.sleep(0.2)
    assert [r["names"] for r in reports] == [["NVIDIA H200"]]
    other = reports[0] | {"utilization": 50.0, "seconds": 99.0}
    assert gpu_monitor.combine_reports([reports[0], other]) == {
        "names": ["NVIDIA H200"] * 2,
        "memory_mb": 287542,
        "peak_memory_mb": 2000,
        "utilization": 70.0,
        "seconds": 99.0,
    }
    with _gpu_monitor.watched(ask, False) as reports:
        pass
    assert gpu_monitor.combine_reports(reports) is None
