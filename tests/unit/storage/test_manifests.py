"""Manifests: written whole, and reused only for the same inputs."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


def test_several_are_read_together(empty_home: Path) -> None:
    days = [f"2024-01-{i:02}" for i in range(1, 21)]
    written = {day: manifests.write(replace(DONE, key=day), time.monotonic()) for day in days[::3]}
    assert manifests.read_all("toy", "data", reversed(days)) == written
    assert manifests.read_all("toy", "data", []) == {}
    Path(manifests.uri("toy", "data", days[0])).write_text("{")
    with pytest.raises(StorageError, match="is not a manifest"):
        manifests.read_all("toy", "data", days)


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


@settings(max_examples=40, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 0.999), st.integers(0, 7))
def test_any_flipped_bit_is_found(empty_home: Path, position: float, bit: int) -> None:
    written = manifests.write(DONE, time.monotonic())
    file = Path(manifests.uri("toy", "data", "2024-01-01"))
    content = bytearray(file.read_bytes())
    content[int(position * len(content))] ^= 1 << bit
    file.write_bytes(content)
    try:
        # white space between the fields has no meaning
        assert manifests.read("toy", "data", "2024-01-01") == written
        assert chr(content[int(position * len(content))]) in " \n\t\r"
    except StorageError as error:
        assert "run the step data for 2024-01-01 again with force" in error.remedy


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"model": "other"}, "is the manifest of other, data, 2024-01-01"),
        ({"step": "score"}, "is the manifest of toy, score, 2024-01-01"),
        ({"key": "2024-01-02"}, "is the manifest of toy, data, 2024-01-02"),
        ({"rows_out": 3}, "5 rows came in, 3 went out and 1 to quarantine"),
    ],
)
def test_a_manifest_of_something_else_is_refused(
    empty_home: Path, change: dict[str, Any], cause: str
) -> None:
    """Its digest is right: it was copied from elsewhere, or written by another program."""
    other = manifests._store(replace(DONE, **change))
    place = Path(manifests.uri("toy", "data", "2024-01-01"))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(Path(manifests.uri(other.model, other.step, other.key)).read_text())
    for read in (manifests.read, lambda *names: manifests.find_completed(*names, DONE.inputs)):
        with pytest.raises(StorageError, match=cause):
            read("toy", "data", "2024-01-01")


@pytest.mark.parametrize("change", [{"rows_in": 4, "rows_out": 3}, {"result": {}}, {"digest": ""}])
def test_changed_content_is_refused(empty_home: Path, change: dict[str, Any]) -> None:
    manifests.write(DONE, time.monotonic())
    file = Path(manifests.uri("toy", "data", "2024-01-01"))
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(StorageError, match=r"changed after it was written|has no digest"):
        manifests.read("toy", "data", "2024-01-01")


def test_no_scraps_are_left_beside_it(empty_home: Path) -> None:
    manifests.write(DONE, time.monotonic())
    manifests.write(DONE, time.monotonic())
    file = Path(manifests.uri("toy", "data", "2024-01-01"))
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    assert json.loads(file.read_text())["rows_in"] == 5
