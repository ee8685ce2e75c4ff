"""Templates, and small files written whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from perennial.core.errors import StorageError
from perennial.storage import landing as landing_module
from perennial.storage import object_store


def test_templates(house: Path) -> None:
    landing = str(house / "landing")
    assert (
        landing_module.source_uri("{landing}/a/{date}.parquet", "2024-03-04")
        == f"{landing}/a/2024-03-04.parquet"
    )
    assert (
        landing_module.source_uri("{landing}/{year}/{month}/{day}.csv", "2024-03-04")
        == f"{landing}/2024/03/04.csv"
    )
    assert landing_module.source_uri("s3://b/places.parquet") == "s3://b/places.parquet"


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    place = str(tmp_path / "deep" / "a.json")
    assert not object_store.exists(place)
    object_store.write_text(place, "one")
    object_store.write_text(place, "zwei ü")
    assert object_store.read_text(place) == "zwei ü"
    assert object_store.exists(place)
    assert object_store.digest(place) == hashlib.sha256("zwei ü".encode()).hexdigest()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.json"]


def test_a_missing_file_is_not_a_broken_store(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        object_store.read_text(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        object_store.digest(str(tmp_path / "none"))


def test_a_folder_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        object_store.write_text(str(tmp_path / "file" / "below.json"), "x")
    with pytest.raises(StorageError, match="cannot be read"):
        object_store.read_text(str(tmp_path))


def test_a_folder_is_emptied_of_whole_files(tmp_path: Path) -> None:
    for name in ("a/x.json", "a/.y.json.1f", "ab.json"):
        object_store.write_text(f"{tmp_path}/{name}", "1")
    for _ in range(2):
        object_store.delete_files(f"{tmp_path}/a")
        object_store.delete_files(f"{tmp_path}/never")
        # Another run writes there at the same time.
        assert [p.name for p in (tmp_path / "a").iterdir()] == [".y.json.1f"]
        assert (tmp_path / "ab.json").exists()
    with pytest.raises(StorageError, match="cannot be read"):
        object_store.delete_files(f"{tmp_path}/ab.json")
