"""What killed runs leave is removed, and what is in use is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perennial.core.settings import ROOT, settings
from perennial.storage import leftovers
from perennial.training.checkpoint import Checkpoint

DAY = 86_400.0


def age(path: Path, days: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(b"rows")
    moment = time.time() - days * DAY
    os.utime(path, (moment, moment))
    return path


def folder(path: Path, days: float) -> Path:
    age(path / "rows.parquet", days)
    return age(path, days)


@pytest.fixture
def tmp(empty_home: Path) -> Path:
    return empty_home / "tmp"


def test_a_folder_is_removed_after_its_run_and_after_a_killed_one(tmp: Path) -> None:
    old, young = folder(tmp / "train-old", 1.1), folder(tmp / "train-young", 0.9)
    other = folder(tmp / "data-old", 9)
    with leftovers.temporary_folder("train-") as used:
        assert used.parent == tmp and used.name.startswith("train-")
        assert not old.exists() and young.exists() and other.exists(), "only old ones, and only of its kind"
    assert not used.exists()


def test_a_folder_that_no_sweep_would_remove_is_not_made(tmp: Path) -> None:
    with pytest.raises(ValueError, match="'other-'"), leftovers.temporary_folder("other-"):
        pass


def test_a_folder_that_another_process_uses_is_not_removed(tmp: Path) -> None:
    code = (
        "import sys; from perennial.storage import leftovers\n"
        "with leftovers.temporary_folder('train-') as used: print(used, flush=True); sys.stdin.read()"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "include")}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
    ) as process:
        assert process.stdout is not None
        used = Path(process.stdout.readline().strip())
        age(used, 9)
        leftovers.sweep()
        assert used.is_dir()
        process.kill()
        process.wait()
        age(used, 9)
        assert leftovers.sweep() == [used]
    assert not used.exists()


def test_everything_old_that_only_a_killed_run_can_have_left_is_removed(tmp: Path) -> None:
    lake = Path(settings().lake)
    hidden = f".2024-01-01.html.{'0a' * 16}"
    gone = [
        age(lake / "reports" / "toy" / hidden, 1.1),
        age(lake / "manifests" / "toy" / "data" / hidden, 1.1),
        age(tmp.parent / "cache" / "models" / hidden, 1.1),
        age(tmp / hidden, 1.1),
        age(tmp / "a.rendezvous.json", 3.1),
        age(tmp / "spill" / "duckdb_temp_storage_DEFAULT-0.tmp", 3.1),
        *(folder(tmp / f"{prefix}x", 1.1) for prefix in ("data-", "sign-", "sorted-", "perennial-sample-")),
    ]
    kept = [
        age(lake / "reports" / "toy" / "2024-01-01.html", 99),
        age(lake / "reports" / "toy" / f".2024-01-02.html.{'0b' * 16}", 0.9),
        age(lake / "published" / "toy" / hidden, 99),  # of the Delta library's making
        age(lake / "a.rendezvous.json", 99),
        age(tmp / "b.rendezvous.json", 2.9),
        age(tmp / "spill" / "duckdb_temp_storage_DEFAULT-1.tmp", 2.9),
    ]
    age(lake / "published" / "toy" / "_delta_log" / "0.json", 99)
    assert sorted(leftovers.sweep()) == sorted(gone)
    assert not [path for path in gone if path.exists()] and all(path.exists() for path in kept)


def test_what_a_killed_write_leaves_is_removed(tmp: Path) -> None:
    target = settings().lake + "/reports/toy/2024-01-01.html"
    code = (
        "import os, sys; from pathlib import Path; from perennial.storage import object_store\n"
        "Path.replace = lambda *_: os._exit(9)\n"
        "object_store.write_text(sys.argv[1], '<p>')"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "include")}
    assert subprocess.run([sys.executable, "-c", code, target], env=environ).returncode == 9
    (left,) = Path(target).parent.iterdir()
    assert leftovers.sweep() == []
    age(left, 1.1)
    assert leftovers.sweep() == [left]


def test_it_is_done_once_a_day_and_never_fails(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = age(tmp / f".x.{'0a' * 16}", 2)
    leftovers.sweep_daily()
    assert not old.exists()
    age(old, 2)
    leftovers.sweep_daily()
    assert old.exists()
    age(tmp / ".swept", 1.1)
    leftovers.sweep_daily()
    assert not old.exists()
    age(tmp / ".swept", 1.1)

    def denied() -> list[Path]:
        raise PermissionError(13, "?")

    monkeypatch.setattr(leftovers, "sweep", denied)
    leftovers.sweep_daily()


def test_checkpoints_that_no_training_continues_are_removed(empty_home: Path) -> None:
    root = Path(settings().lake, "checkpoints", "toy")
    old, young = (
        age(root / "2024-01-01-a" / "trials.json", 31),
        age(root / "2024-02-01-b" / "trials.json", 29),
    )
    Checkpoint.remove_stale("toy")
    assert not old.exists() and young.exists()
