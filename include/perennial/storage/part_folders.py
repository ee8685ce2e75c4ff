"""Folders of part files, which Spark and other distributed writers put in the place of one file.

The parts are the files of the folder, in the order of their names; names that begin with ``_`` or ``.`` are the
writer's own. A folder has landed once its writer is done: see `PartFolder.missing`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from perennial.core import file_formats
from perennial.storage import object_store
from perennial.storage.object_store import FileStat

#: The empty file that a writer puts into the folder last.
SUCCESS = "_SUCCESS"
#: The folder of what is being written.
_TEMPORARY = "_temporary/"


class IncompleteFolderError(FileNotFoundError):
    """A folder whose writer is not done; the text says how that is known."""


@dataclass(frozen=True)
class PartFolder:
    """What is in a folder.

    Attributes:
        uri: the folder.
        files: its files by their path in it, also those of the writer, without hidden ones.
    """

    uri: str
    files: Mapping[str, FileStat]

    @property
    def parts(self) -> dict[str, FileStat]:
        """The part files, in order. Spark writes empty ones for text without rows."""
        return {
            path: stat
            for path, stat in sorted(self.files.items())
            if stat.size and not any(name.startswith(("_", ".")) for name in path.split("/"))
        }

    @property
    def stat(self) -> FileStat:
        """Size of the parts, and the time of the last file."""
        size = sum(stat.size for stat in self.parts.values())
        return FileStat(size, max((stat.modified_ns for stat in self.files.values()), default=0))

    @property
    def fault(self) -> str:
        """Why the parts cannot be read as one partition; empty if they can."""
        if any(path.startswith("_delta_log/") for path in self.files):
            return "it is a Delta table, some of whose files are no longer part of it"
        if nested := [path for path in self.parts if "/" in path]:
            return f"it holds the folder {nested[0].partition('/')[0]}; part files are directly in the folder"
        texts = {name: file_formats.is_text(self.format_name(name)) for name in self.parts}
        if len(set(texts.values())) > 1:
            mixed = sorted(texts, key=texts.__getitem__)
            return f"it holds files of different formats: {mixed[0]} and {mixed[-1]}"
        return ""

    def format_name(self, part: str) -> str:
        """The name that tells a part's format: Hive's parts have no ending, so the folder's counts."""
        return part if file_formats.ending(part) else self.uri

    def missing(self, others: Iterable[PartFolder] | None = None) -> str:
        """Why the folder is not complete; empty if it is.

        ``_SUCCESS`` tells that its writer is done. Not all writers have it, so a folder of parts without it is
        complete, unless a folder ``_temporary`` is left, or the folders beside it have a ``_SUCCESS``.

        Args:
            others: the folders beside it; they are listed if they are not given.
        """
        if SUCCESS in self.files:
            return ""
        if any(path.startswith(_TEMPORARY) for path in self.files):
            return f"the folder has no {SUCCESS}, and a folder {_TEMPORARY.rstrip('/')}: it is being written"
        if not self.parts:
            return "the folder holds no files"
        if any(SUCCESS in other.files for other in (_beside(self.uri) if others is None else others)):
            return f"the folder has no {SUCCESS}, which the folders beside it have: it is being written"
        return ""


def find(uri: str) -> PartFolder | None:
    """The folder in the place of a landed file; None if there is a file, or nothing.

    Raises:
        StorageError: the folder cannot be read.
    """
    if not object_store.is_remote(uri):
        if not Path(uri).is_dir():
            return None
    elif object_store.exists(uri):
        return None
    files = object_store.list_files(uri, recursive=True, copied=True)
    return PartFolder(uri, files) if files or not object_store.is_remote(uri) else None


def find_complete(uri: str) -> PartFolder | None:
    """As `find`.

    Raises:
        IncompleteFolderError: the folder is not complete.
        StorageError: it cannot be read.
    """
    folder = find(uri)
    if folder and (missing := folder.missing()):
        raise IncompleteFolderError(missing)
    return folder


def digest(digests: Iterable[str]) -> str:
    """One digest of the digests of the parts, in their order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _beside(uri: str) -> Iterable[PartFolder]:
    """The folders beside one, as far as their ``_SUCCESS`` is concerned."""
    parent, _, name = uri.rpartition("/")
    for other in object_store.list_folders(parent):
        if other != name and object_store.exists(f"{parent}/{other}/{SUCCESS}"):
            yield PartFolder(f"{parent}/{other}", {SUCCESS: FileStat(0, 0)})
