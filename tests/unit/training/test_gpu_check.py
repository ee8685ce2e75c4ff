"""The script of `make test-gpu`, without a card: what it can do on the CPU, and that it says what it did not test."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from perennial.core.settings import ROOT
from perennial.training import _boosting


@pytest.fixture
def script() -> Iterator[ModuleType]:
    """The script as a module, with the environment as it was afterwards."""
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "tools" / "gpu_check.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    before = dict(os.environ)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]
    os.environ.clear()
    os.environ.update(before)


def test_a_rehearsal_on_the_cpu_runs_every_check(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--rows", "2000", "--rounds", "4", "--out", str(out)]
    assert script.main(options) == 0
    content = json.loads(out.read_text())
    assert (content["device"], content["cuda_tested"], content["passed"]) == ("cpu", False, True)
    runs = {(run["role"], run["storage"]): run for run in content["runs"]}
    assert {key: (run["device"], run["on_disk"]) for key, run in runs.items()} == {
        (role, storage): ("cpu", storage == "disk") for role in ("cpu", "card") for storage in ("memory", "disk")
    }  # fmt: skip
    assert len({json.dumps(run["metrics"]) for run in runs.values()}) == 1, (
        "the same rows give the same model"
    )
    assert content["score"]["rows"] == 400 and content["score"]["difference"] == 0
    for storage in ("memory", "disk"):
        cpu, card = runs["cpu", storage]["seconds"], runs["card", storage]["seconds"]
        assert content["speed_up"][storage]["seconds"] == pytest.approx(cpu / card, rel=0.01)
    assert "nothing of CUDA was tested" in capsys.readouterr().out


def test_a_machine_without_a_card_is_known(script: ModuleType) -> None:
    there = _boosting.resolve_device("auto") == "cuda"
    assert (script.usable_card() == "") == there


def test_a_difference_between_the_devices_is_a_failure(script: ModuleType) -> None:
    runs = [
        {"role": role, "storage": storage, "metrics": {"auc": auc}, "seconds": 1.0, "boosting_seconds": 1.0}
        for role, auc in (("cpu", 0.8), ("card", 0.7))
        for storage in ("memory", "disk")
    ]
    report = script.Report([], runs)
    script.compare(report, "cuda")
    assert {check["check"] for check in report.checks if not check["passed"]} == {
        "metrics, memory", "metrics, disk",
    }  # fmt: skip


def test_without_a_card_it_fails_and_says_that_nothing_was_tested(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    out = tmp_path / "gpu.json"
    assert script.main(["--out", str(out)]) == 2
    assert "NOTHING OF CUDA WAS TESTED" in capsys.readouterr().out
    assert not out.exists()


def test_it_ends_when_its_time_is_up(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--device", "cpu", "--rows", "10000000", "--seconds", "1", "--out", str(tmp_path / "gpu.json")]
    assert script.main(options) == 1
    assert "longer than 1 seconds" in capsys.readouterr().out
