"""Lines about work that takes long: at a bounded rate, and seen where a step runs."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from perennial.core import progress
from perennial.core.progress import Progress
from perennial.steps.monitor import monitor
from perennial.steps.promote import promote
from perennial.steps.score import score
from perennial.steps.train import train
from support import toys


def test_lines_come_at_a_bounded_rate(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    work, at = Progress(), []
    with caplog.at_level(logging.INFO, "perennial"):
        for second in range(3600):  # an hour, in which something could be said each second
            clock[0] = float(second)
            due = work.due()
            work.report("%d of %d", second, 3600)
            if len(caplog.records) > len(at):
                assert due
                at.append(second)
    assert at[:3] == [10, 20, 30]
    pauses = [b - a for a, b in itertools.pairwise(at)]
    assert min(pauses) == 10 and 150 <= max(pauses) <= 180  # a twentieth of the hour at its end
    assert len(at) < 90
    assert caplog.messages[0] == "10 of 3600"


def test_a_step_says_how_far_it_has_come(
    mlflow_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("PERENNIAL_PROGRESS_SECONDS", "0.001")
    spec = toys.model(tmp_path / "models", toys.unique())
    toys.land(spec)
    last = toys.LAST
    done = subprocess.run(
        [sys.executable, "-m", "perennial", "run", "data", "--start", toys.FIRST, "--end", last, "--model", spec.name],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1  # the result alone
    assert f"INFO: Published {toys.DAYS} of {toys.DAYS} files of rows" in done.stderr
    caplog.set_level(logging.INFO)
    train(spec, as_of=last)
    assert "labelled rows to fit on" in caplog.text
    assert " logloss " in caplog.text and ", the best " in caplog.text and ": round " in caplog.text
    promote(spec, as_of=last, actor="test")
    score(spec, start=last)
    assert f"of {toys.ROWS} rows, up to partition {last}" in caplog.text
    monitor(spec, as_of=last)
    assert "Counted the features of 420 of 420 rows" in caplog.text
