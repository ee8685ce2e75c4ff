"""Small files: written whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from perennial.core.errors import StorageError
from perennial.storage import object_store


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = str(tmp_path / "deep" / "a.json")
    assert not object_store.exists(file)
    object_store.write_text(file, "one")
    object_store.write_text(file, "zwei ü")
    assert object_store.read_text(file) == "zwei ü"
    assert object_store.exists(file)
    assert object_store.digest(file) == hashlib.sha256("zwei ü".encode()).hexdigest()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.json"]


def test_a_missing_file_is_no_storage_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        object_store.read_text(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        object_store.digest(str(tmp_path / "none"))


def test_a_folder_in_the_way_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        object_store.write_text(str(tmp_path / "file" / "below.json"), "x")
    with pytest.raises(StorageError, match="cannot be read"):
        object_store.read_text(str(tmp_path))


def test_the_files_of_a_folder_are_deleted_except_unfinished_ones(tmp_path: Path) -> None:
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


class Entries(list[os.DirEntry[str]]):
    """What `os.scandir` returns, read beforehand."""

    def __enter__(self) -> Entries:
        return self

    def __exit__(self, *_: object) -> None:
        return


def test_a_file_that_vanishes_while_its_folder_is_listed_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(9):
        (tmp_path / f"{n}.csv").touch()
    scan = os.scandir

    def scan_and_rename(folder: Path) -> Entries:
        with scan(folder) as entries:
            listed = list(entries)
        Path(listed[0].path).rename(tmp_path.parent / "renamed.csv")
        return Entries(listed)

    monkeypatch.setattr(os, "scandir", scan_and_rename)
    assert len(object_store.list_files(str(tmp_path))) == 8
