"""Manifests: written whole, and reused only for the same inputs."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from perennial.core.errors import StorageError
from perennial.storage import manifests
from perennial.storage.manifests import Manifest

DONE = Manifest("toy", "data", "2024-01-01", {"rows": "abc", "n": 1}, {"status": "published"}, rows_in=5, rows_out=4,
                quarantined=1)  # fmt: skip


def test_it_comes_back_completed(empty_home: Path) -> None:
    assert manifests.read("toy", "data", "2024-01-01") is None
    written = manifests.write(DONE, time.monotonic() - 2)
    assert manifests.read("toy", "data", "2024-01-01") == written
    assert written.duration >= 2
    assert written.memory_mb > 10
    assert written.code_version.startswith("0.")
    assert written.finished_at.endswith("Z")


def test_counts_must_add_up(empty_home: Path) -> None:
    with pytest.raises(StorageError, match="5 rows came in, 3 went out and 1"):
        manifests.write(replace(DONE, rows_out=3), time.monotonic())
    assert manifests.read("toy", "data", "2024-01-01") is None


def test_unchanged_inputs_are_a_finished_step(empty_home: Path) -> None:
    manifests.write(DONE, time.monotonic())
    assert manifests.find_completed("toy", "data", "2024-01-01", {"n": 1, "rows": "abc"}) is not None
    assert manifests.find_completed("toy", "data", "2024-01-01", {"n": 2, "rows": "abc"}) is None
    assert manifests.find_completed("toy", "data", "2024-01-01", {"rows": "abc"}) is None
    assert manifests.find_completed("toy", "data", "2024-01-02", {"n": 1, "rows": "abc"}) is None


def test_inputs_are_compared_as_json_keeps_them(empty_home: Path) -> None:
    manifests.write(replace(DONE, inputs={"pairs": [("a", 1)], "by": {1: 2}}), time.monotonic())
    assert (
        manifests.find_completed("toy", "data", "2024-01-01", {"pairs": [("a", 1)], "by": {1: 2}}) is not None
    )


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": "toy"}', '{"unknown": 1}', "null"])
def test_another_content_is_an_error(empty_home: Path, text: str) -> None:
    file = Path(manifests.uri("toy", "data", "2024-01-01"))
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(StorageError, match="is not a manifest"):
        manifests.read("toy", "data", "2024-01-01")


def test_no_scraps_are_left_beside_it(empty_home: Path) -> None:
    manifests.write(DONE, time.monotonic())
    manifests.write(DONE, time.monotonic())
    file = Path(manifests.uri("toy", "data", "2024-01-01"))
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    assert json.loads(file.read_text())["rows_in"] == 5
