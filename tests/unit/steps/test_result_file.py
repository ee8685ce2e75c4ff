"""The file in which a step that runs elsewhere returns its result or its error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.core.errors import DataError, PerennialError, UnexpectedError
from perennial.steps import result_file
from perennial.storage import manifests
from support import toys


def test_a_result_comes_back(tmp_path: Path) -> None:
    uri = str(tmp_path / "result.json")
    assert result_file.read_result(uri) is None
    with result_file.step_outcome(uri) as outcome:
        outcome.result = {"rows_in": 3, "partitions": ["2024-01-01"]}
    assert result_file.read_result(uri) == {"rows_in": 3, "partitions": ["2024-01-01"]}


def test_an_error_comes_back_as_it_was(tmp_path: Path) -> None:
    uri = str(tmp_path / "result.json")
    with pytest.raises(DataError), result_file.step_outcome(uri):
        raise DataError("no rows", "land some", model="toy", partition="2024-01-01")
    with pytest.raises(DataError) as error:
        result_file.read_result(uri)
    assert str(error.value) == str(DataError("no rows", "land some", model="toy", partition="2024-01-01"))


def test_a_step_that_crashed_leaves_its_error_in_words(tmp_path: Path) -> None:
    uri = str(tmp_path / "result.json")
    with pytest.raises(UnexpectedError), result_file.step_outcome(uri):
        raise ZeroDivisionError
    with pytest.raises(UnexpectedError, match="unexpected ZeroDivisionError in ") as error:
        result_file.read_result(uri)
    assert "report it with this text" in error.value.remedy


def test_another_library_is_refused_before_any_work(empty_home: Path, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    bundle, uri = tmp_path / "bundle.json", tmp_path / "result.json"
    bundle.write_text(json.dumps(spec.bundle()))
    done = CliRunner().invoke(app, ["run", "data", "--spec-file", str(bundle), "--start", "2024-01-01",
                                    "--result-file", str(uri), "--library-digest", "0" * 64])  # fmt: skip
    assert isinstance(done.exception, PerennialError)
    with pytest.raises(PerennialError, match="the caller's has 000000000000"):
        result_file.read_result(str(uri))
    assert manifests.read("toy", "data", "2024-01-01") is None
