"""Digests of the lake's data files: recorded when a table is written, compared before a file is read.

The record of a file lies in the lake's folder ``digests``, under the path of the file. It never changes, because Delta
never uses a file's name twice. A file is read from end to end, and compared, when this machine reads it for the first
time, and when its size or its time of change is another one; `scrub` compares it again.

A commit that was killed before its records leaves files without one, and so does a lake that was written before there
were records. They are not read: nobody can tell whether they are what was written.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote

from perennial.core import unexpected_errors
from perennial.core.errors import StorageFaultError
from perennial.core.settings import settings
from perennial.storage import object_store

if TYPE_CHECKING:
    from deltalake import DeltaTable

#: Seconds to wait for the records of files whose commit may just have been made, beside the time of reading them.
RECORD_WAIT_SECONDS = 10.0
#: Bytes a second that a writer reads at least to make records.
RECORD_BYTES_PER_SECOND = 20e6
#: Size of the list of verified files of a table, above which it begins anew.
MAX_LIST_BYTES = 8 << 20
#: Requests to the storage at the same time.
PARALLEL = 8
#: Files that an error names.
MAX_NAMED_FILES = 3
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class _VerifiedFiles:
    """The files of one table that this machine has compared.

    Attributes:
        path: the list in this machine's cache, one file a line.
        marks: the size and time of change of each file when it was compared, by path in the table.
        lock: held while the list is changed.
    """

    path: Path
    marks: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def load(cls, table: str) -> _VerifiedFiles:
        """Read the list of a table; one that cannot be read is empty."""
        name = hashlib.sha256(table.encode()).hexdigest()[:32]
        verified = cls(settings().home / "cache" / "verified" / f"{name}.txt")
        try:
            if verified.path.stat().st_size > MAX_LIST_BYTES:
                verified.path.unlink()
            lines = verified.path.read_text().splitlines()
        except (OSError, ValueError):
            return verified
        verified.marks = {path: mark for path, _, mark in (line.partition("\t") for line in lines)}
        return verified

    def add(self, marks: dict[str, str]) -> None:
        """Add files; a list that cannot be written is only remembered by this process."""
        with self.lock:
            self.marks |= marks
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a") as file:
                    file.write("".join(f"{path}\t{mark}\n" for path, mark in marks.items()))
            except OSError:
                return


#: By working folder and table.
_verified: dict[tuple[Path, str], _VerifiedFiles] = {}
_verified_lock = threading.Lock()


def record_commit(table: DeltaTable, uri: str) -> None:
    """Record the digests of the files that the latest commit of a table added.

    Args:
        table: the table, at the version of the commit.
        uri: the table's folder or S3 URI.

    Raises:
        StorageError: a file cannot be read, or a record cannot be written.
    """
    record(uri, _added_files(uri, int(table.version())))


def _added_files(uri: str, version: int) -> list[str]:
    """The files that a commit added, by path in the table."""
    commit = object_store.read_text(f"{uri}/_delta_log/{version:020d}.json")
    actions = (json.loads(line) for line in commit.splitlines() if line.strip())
    return [unquote(action["add"]["path"]) for action in actions if "add" in action]


def record(uri: str, paths: Sequence[str]) -> None:
    """Record the digests of files as they are now.

    Args:
        uri: the table.
        paths: files, by path in the table.

    Raises:
        StorageError: a file cannot be read, or a record cannot be written.
    """

    def write(path: str) -> None:
        object_store.write_text(_record_uri(uri, path), object_store.digest(f"{uri}/{path}"))

    _map(write, paths)


def forget(uri: str, path: str) -> None:
    """Delete the record of a file that was deleted.

    Args:
        uri: the table.
        path: the file, by path in the table.
    """
    object_store.delete_file(_record_uri(uri, path))


def verify(uri: str, files: Iterable[str]) -> None:
    """Compare files with their recorded digests, unless this machine has done so.

    Args:
        uri: the table.
        files: files of the table, by path or URI.

    Raises:
        StorageFaultError: a file differs from its record, or has none.
        StorageError: a file cannot be read.
    """
    verified = _verified_files(uri)
    marks = {path: _mark(uri, path) for path in (file.removeprefix(f"{uri}/") for file in files)}
    pending = {path: mark for path, mark in marks.items() if verified.marks.get(path) != mark}
    if not pending:
        return
    findings = _compare(uri, list(pending), wait=RECORD_WAIT_SECONDS)
    verified.add({path: mark for path, mark in pending.items() if path not in findings})
    if findings:
        raise _error(uri, findings)


def scrub(uri: str, paths: Collection[str]) -> dict[str, str]:
    """Compare files with their recorded digests, whether or not this machine has done so.

    Args:
        uri: the table.
        paths: files, by path in the table.

    Returns:
        What is wrong with a file, by its path in the table.
    """
    return _compare(uri, list(paths), wait=0.0)


def unrecorded(uri: str, paths: Sequence[str]) -> list[str]:
    """The files that have no record, by path in the table."""
    recorded = _map(lambda path: _recorded(uri, path) is not None, paths)
    return [path for path, known in zip(paths, recorded, strict=True) if not known]


def _verified_files(uri: str) -> _VerifiedFiles:
    key = (settings().home, uri)
    with _verified_lock:
        if key not in _verified:
            _verified[key] = _VerifiedFiles.load(uri)
        return _verified[key]


def _mark(uri: str, path: str) -> str:
    """Size and time of change of a file; on S3 empty, because an object is replaced only as a whole."""
    if object_store.is_remote(uri):
        return ""
    try:
        status = Path(uri, path).stat()
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"


def _compare(uri: str, paths: list[str], wait: float) -> dict[str, str]:
    """What is wrong with files, by path."""
    records = _await_records(uri, paths, wait)

    def compare(path: str) -> str:
        expected = records[path]
        if expected is None:
            return "has no recorded digest" if object_store.exists(f"{uri}/{path}") else "is missing"
        try:
            actual = object_store.digest(f"{uri}/{path}")
        except FileNotFoundError:
            return "is missing"
        if actual == expected:
            return ""
        return f"has digest {actual[:12]}…, {expected[:12]}… was recorded when it was written"

    findings = dict(zip(paths, _map(compare, paths), strict=True))
    return {path: finding for path, finding in findings.items() if finding}


def _await_records(uri: str, paths: list[str], wait: float) -> dict[str, str | None]:
    """The recorded digests of files, by path; those of files that have just been committed may still be made."""
    records = dict(zip(paths, _map(lambda path: _recorded(uri, path), paths), strict=True))
    missing = [path for path, record in records.items() if record is None]
    if missing and wait:
        sizes = dict(
            zip(missing, _map(lambda path: object_store.stat(f"{uri}/{path}"), missing), strict=True)
        )
        missing = [path for path in missing if sizes[path]]  # of deleted files there are no records
        wait += sum(size.size for size in sizes.values() if size) / RECORD_BYTES_PER_SECOND
    deadline = time.monotonic() + wait
    while missing and time.monotonic() < deadline:
        time.sleep(0.1)
        records |= dict(zip(missing, _map(lambda path: _recorded(uri, path), missing), strict=True))
        missing = [path for path in missing if records[path] is None]
    return records


def _error(uri: str, findings: dict[str, str]) -> StorageFaultError:
    """The error about files that cannot be believed."""
    model = uri.rsplit("/", 1)[-1]
    named = "; ".join(f"{uri}/{path} {finding}" for path, finding in list(findings.items())[:MAX_NAMED_FILES])
    if len(findings) > MAX_NAMED_FILES:
        named += f"; and {len(findings) - MAX_NAMED_FILES} more files"
    remedy = unexpected_errors.repair(uri) or "restore it from a backup, or write the partition again"
    if any(finding == "has no recorded digest" for finding in findings.values()):
        remedy += (
            ". Without a record it was written by an interrupted run, or before digests were recorded: if you trust "
            "the files as they are, run perennial verify --record"
        )
    partitions = sorted({part for path in findings for part in _partition(path)})
    return StorageFaultError(
        f"a data file is not what was written: {named}",
        remedy,
        model=model,
        partition=None
        if not partitions
        else partitions[0]
        if len(partitions) == 1
        else f"{partitions[0]}..{partitions[-1]}",
    )


def _partition(path: str) -> Iterator[str]:
    """The partition date in the path of a file, if it has one."""
    for folder in path.split("/")[:-1]:
        if folder.startswith("partition_date="):
            yield folder.removeprefix("partition_date=")


def _record_uri(uri: str, path: str) -> str:
    """The file that holds the digest of a data file."""
    lake = settings().lake
    if uri.startswith(f"{lake}/"):
        return f"{lake}/digests/{uri.removeprefix(f'{lake}/')}/{path}.sha256"
    return f"{uri}.digests/{path}.sha256"


def _recorded(uri: str, path: str) -> str | None:
    try:
        return object_store.read_text(_record_uri(uri, path)).strip()
    except FileNotFoundError:
        return None


def _map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Apply a function to each item, in several threads if there is more than one."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(PARALLEL, len(items)), thread_name_prefix="digest") as pool:
        return list(pool.map(function, items))
