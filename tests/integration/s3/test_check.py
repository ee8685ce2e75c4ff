"""`perennial check` compares a spec with files that landed on S3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perennial.cli.check import preflight
from perennial.core import dates
from perennial.storage import landing
from support import toys, trouble


def test_columns_are_compared_with_a_landed_file(bucket: Any, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    toys.land(spec, days=1)
    report = preflight.check_model(spec)
    assert not report.problems and report.tried == f"{toys.ROWS} landed rows", report
    assert not any("landed" in note for note in report.notes)
    # another column, of another type
    uri = landing.source_uri(spec.data.source, toys.FIRST)
    rows = toys.rows("binary", toys.FIRST)
    toys.write(uri, rows.set_column(rows.column_names.index("x"), "x", pa.array(["no"] * toys.ROWS)))
    (problem,) = preflight.check_model(spec).problems
    assert "model.yaml:" in problem and uri in problem and "x" in problem.partition(uri)[2], problem


def test_labels_on_s3_are_compared_too(bucket: Any, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    toys.land(spec, days=1)
    assert spec.label.source is not None
    toys.write(landing.source_uri(spec.label.source, toys.FIRST), pa.table({"other": [1]}))
    (problem,) = preflight.check_model(spec).problems
    assert "toy_labels" in problem and "column 'y' (integer) is missing" in problem, problem


def test_a_landing_area_whose_older_files_are_gone(bucket: Any, tmp_path: Path) -> None:
    first = dates.add_days(toys.FIRST, -400)
    end = {"schedule": {"start": first, "end": toys.LAST}}
    spec = toys.model(tmp_path / "models", "toy", **end)
    toys.land(spec, toys.LAST, 1)
    assert preflight.check_model(spec).tried == f"{toys.ROWS} landed rows"


def test_what_was_not_compared_is_said(
    bucket: Any, tmp_path: Path, proxy: trouble.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    notes = "\n".join(preflight.check_model(spec).notes)
    assert f"no partition has landed here from {toys.FIRST} to" in notes
    toys.land(spec, days=1)
    monkeypatch.setattr(preflight, "MAX_COPY_BYTES", 10)
    assert "it was not copied" in "\n".join(preflight.check_model(spec).notes)
    proxy.add("forbidden", 99, "HEAD", "landing")
    report = preflight.check_model(spec)
    (note,) = [note for note in report.notes if "landing area cannot be read" in note]
    assert "no partition has landed" not in "\n".join(report.notes), note
