"""What ``nvidia-smi`` reports; a script takes its place, because few machines have a GPU."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from perennial.training import _gpu_monitor


def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = tmp_path / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")


def test_figures_are_of_all_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, monkeypatch, "echo 'NVIDIA H200, 143771, 1000, 90'; echo 'NVIDIA H200, 143771, 3000, 50'")
    with _gpu_monitor.GpuMonitor() as monitor:
        time.sleep(0.2)
    report = monitor.report()
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
    with _gpu_monitor.GpuMonitor() as monitor:
        pass
    assert monitor.report() is None


def test_without_a_gpu_nothing_is_monitored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with _gpu_monitor.GpuMonitor() as monitor:
        pass
    assert monitor.report() is None
    with _gpu_monitor.GpuMonitor(enabled=False) as monitor:
        pass
    assert monitor.report() is None


def test_reports_of_several_machines_are_combined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, monkeypatch, "echo 'NVIDIA H200, 143771, 1000, 90'")

    with _gpu_monitor.monitor_gpus(True) as reports:
        time.sleep(0.2)
    assert [r["names"] for r in reports] == [["NVIDIA H200"]]
    other = reports[0] | {"utilization": 50.0, "seconds": 99.0}
    assert _gpu_monitor.combine_reports([reports[0], other]) == {
        "names": ["NVIDIA H200"] * 2,
        "memory_mb": 287542,
        "peak_memory_mb": 2000,
        "utilization": 70.0,
        "seconds": 99.0,
    }
    with _gpu_monitor.monitor_gpus(False) as reports:
        pass
    assert _gpu_monitor.combine_reports(reports) is None
