"""Landed files: their paths and fingerprints, and how they are fetched to this machine.

A partition lands as one file, Parquet or CSV, in a folder or on S3. A local Parquet file is read in place. A text file,
or any file on S3, is copied to the working folder first, because it is read more than once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING

from perennial.core import file_formats, partitions
from perennial.core.errors import DataReplacedError
from perennial.core.partitions import DAILY, Cadence
from perennial.core.settings import settings
from perennial.feeds import text_files
from perennial.feeds.column_names import check_columns
from perennial.feeds.feed_schema import FeedSchema
from perennial.storage import _landed_copies, object_store, part_folders
from perennial.storage.object_store import FileStat
from perennial.storage.part_folders import PartFolder

if TYPE_CHECKING:
    import duckdb

#: Patterns of the placeholders of a path template.
_DATE_PARTS = {
    "{date}": r"\d{4}-\d{2}-\d{2}", "{year}": r"\d{4}", "{month}": r"\d{2}", "{day}": r"\d{2}",
    "{hour}": r"\d{2}",
}  # fmt: skip


@dataclass(frozen=True)
class Fingerprint:
    """What identifies the bytes of a landed file.

    Attributes:
        digest: SHA-256 of the bytes.
        stat: size and time of the file; None for a copy.
        stamp: inode, size and times of a file in a folder, which change when it is written or replaced; empty on S3.
            Of a folder of parts, those of each part.
    """

    digest: str
    stat: FileStat | None = None
    stamp: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class LandedFile:
    """One partition's file, or its folder of part files.

    Attributes:
        day: partition date.
        uri: where it landed.
        path: the local file that is read: the landed file itself, or a copy of it; of a folder, the first part's.
        columns: the file's columns, in its order.
        rows: number of rows, from the file's footer.
        digest: SHA-256 of the landed file's bytes.
        stamp: of the landed file, if it is read in place (see `Fingerprint`); empty for a copy, which cannot change.
        types: the file's types of the declared columns; of a folder, the first part's.
        is_text: whether its cells are text.
        parts: the part files, if it is a folder.
        undeclared: type of each column that the spec does not declare.
    """

    day: str
    uri: str
    path: Path
    columns: list[str]
    rows: int | None
    digest: str = ""
    stamp: tuple[int | str, ...] = ()
    types: tuple[str, ...] = ()
    is_text: bool = False
    parts: tuple[LandedFile, ...] = ()
    undeclared: Mapping[str, str] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether the feed has replaced the file since its digest was computed."""
        return bool(self.stamp) and _stamp(self.uri) != self.stamp


def fingerprint(uri: str) -> Fingerprint | None:
    """Identify the bytes of a landed file, or of a folder of part files; None if it has not landed.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        if folder := part_folders.find_complete(uri):
            stamp = _stamp(uri)
            parts = (object_store.digest(f"{uri}/{name}") for name in folder.parts)
            return Fingerprint(part_folders.digest(parts), folder.stat, stamp)
        # before the digest: a file that is replaced meanwhile counts as changed
        stat, stamp = object_store.stat(uri, copied=True), _stamp(uri)
        return None if stat is None else Fingerprint(object_store.digest(uri), stat, stamp)
    except FileNotFoundError:
        return None


def has_landed(uri: str) -> bool:
    """Whether a file has landed, or a complete folder of part files in its place.

    Raises:
        StorageError: that cannot be found out.
    """
    return landed_stat(uri) is not None


def landed_stat(uri: str) -> FileStat | None:
    """Size and time of a landed file, or of a complete folder of part files in its place; None if there is neither.

    Raises:
        StorageError: that cannot be found out.
    """
    folder = part_folders.find(uri)
    if folder is None:
        return object_store.stat(uri, copied=True)
    return None if folder.missing() else folder.stat


def _stamp(uri: str) -> tuple[int | str, ...]:
    if object_store.is_remote(uri):
        return ()
    try:
        status = Path(uri).stat()
        if S_ISDIR(status.st_mode):
            parts = part_folders.PartFolder(uri, object_store.list_files(uri, recursive=True)).parts
            return tuple(value for name in parts for value in (name, *_stamp(f"{uri}/{name}")))
    except OSError:
        return (0,)
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def fetch_file(
    feed: FeedSchema,
    day: str,
    uri: str,
    folder: Path,
    con: duckdb.DuckDBPyConnection,
    known: Fingerprint | None = None,
) -> LandedFile:
    """Fetch one partition's file to this machine, and check its columns.

    Args:
        feed: what the file must hold.
        day: partition date.
        uri: where the file lands.
        folder: where copies go.
        con: DuckDB connection that converts text files.
        known: the file's fingerprint; it is not computed again unless the file has changed since.

    Raises:
        FileNotFoundError: the file has not landed.
        DataError: the file cannot be read, its columns are not those declared, or it is replaced meanwhile.
        StorageError: the file cannot be copied.
    """
    if part_folder := part_folders.find_complete(uri):
        return _fetch_parts(feed, day, part_folder, folder, con, known)
    return _fetch(feed, day, uri, folder, con, file_formats.is_text(uri), known)


def empty_file(feed: FeedSchema, day: str, uri: str, folder: Path) -> LandedFile:
    """What stands for a file that may be missing: one with the declared columns and no rows.

    Args:
        feed: the feed.
        day: partition date.
        uri: where the file would be.
        folder: where the stand-in goes, which all such files of a feed share.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / f"{feed.kind}.empty.parquet"
    columns = [c for c in feed.columns if c != feed.row_number]
    schema = pa.schema([(c, pa.null()) for c in columns])
    if not path.exists():
        pq.write_table(schema.empty_table(), path)
    return LandedFile(day, uri, path, columns, 0, types=tuple(str(pa.null()) for _ in columns))


def _fetch(
    feed: FeedSchema,
    day: str,
    uri: str,
    folder: Path,
    con: duckdb.DuckDBPyConnection,
    is_text: bool,
    known: Fingerprint | None = None,
) -> LandedFile:
    """As `fetch_file`, of a single file, which may be a part."""
    path = Path(uri)
    if object_store.is_remote(uri):
        path = folder / f"{feed.kind}-{day}.landed"
        read = Fingerprint(_landed_copies.download(uri, path))
    else:
        read = known if known and known.stamp == _stamp(uri) else _existing_fingerprint(uri)
    if path.stat().st_size == 0:
        raise feed.error(f"{uri} is empty: zero bytes", "ask the feed to deliver it again", day)
    if is_text:
        path = text_files.convert(
            feed, day, uri, _landed_copies.decompress(feed, day, uri, path, folder), folder, con
        )
    schema, rows = _landed_copies.read_footer(feed, day, uri, path)
    check_columns(feed, day, uri, schema, is_text)
    types = tuple(str(schema.field(c).type) for c in feed.columns if c != feed.row_number)
    extra = {f.name: "text" if is_text else str(f.type) for f in schema if f.name not in feed.columns}
    file = LandedFile(
        day, uri, path, list(schema.names), rows, read.digest, read.stamp, types, is_text, undeclared=extra
    )
    if is_text and file.changed:
        raise replaced_error(feed, file)
    return replace(file, stamp=()) if is_text else file


def _fetch_parts(
    feed: FeedSchema,
    day: str,
    part_folder: PartFolder,
    folder: Path,
    con: duckdb.DuckDBPyConnection,
    known: Fingerprint | None,
) -> LandedFile:
    """As `fetch_file`, of a folder of part files."""
    uri, stamp = part_folder.uri, _stamp(part_folder.uri)
    if part_folder.fault:
        raise feed.error(
            f"{uri} cannot be read: {part_folder.fault}",
            "ask the feed for one file, or one folder of parts",
            day,
        )
    # An unchanged folder is not read for its digest again.
    unchanged = known is not None and bool(stamp) and known.stamp == stamp
    parts = []
    for i, name in enumerate(part_folder.parts):
        copies = folder / f"{feed.kind}-{day}.{i}"
        copies.mkdir()
        is_text, part = file_formats.is_text(part_folder.format_name(name)), f"{uri}/{name}"
        trusted = Fingerprint("", stamp=_stamp(part)) if unchanged else None
        parts.append(_fetch(feed, day, part, copies, con, is_text, trusted))
    digest = known.digest if known and unchanged else part_folders.digest(p.digest for p in parts)
    if not parts:
        return replace(empty_file(feed, day, uri, folder), digest=digest)
    rows, first = sum(part.rows or 0 for part in parts), parts[0]
    extra = {name: kind for part in reversed(parts) for name, kind in part.undeclared.items()}
    file = replace(
        first, uri=uri, rows=rows, digest=digest, stamp=stamp, parts=tuple(parts), undeclared=extra
    )
    if file.changed or (object_store.is_remote(uri) and part_folders.find(uri) != part_folder):
        raise replaced_error(feed, file)
    return replace(file, stamp=()) if first.is_text else file


def _existing_fingerprint(uri: str) -> Fingerprint:
    if (read := fingerprint(uri)) is None:
        raise FileNotFoundError(uri)
    return read


def replaced_error(feed: FeedSchema, file: LandedFile) -> DataReplacedError:
    """The error about a file that was replaced while it was read."""
    return DataReplacedError(
        f"{file.uri} was replaced while it was read; nothing was published from it",
        "run it again when the feed has delivered the file; feeds should rename a complete file to its place",
        model=feed.model,
        partition=file.day,
    )


def source_uri(template: str, day: str | None = None) -> str:
    """Fill in a path template of the spec.

    Args:
        template: path with ``{landing}``, and ``{date}``, ``{year}``, ``{month}``, ``{day}`` and ``{hour}`` of the
            start of a partition.
        day: key of the partition; without one, only ``{landing}`` is filled in.
    """
    values = {"landing": settings().landing} if "{landing}" in template else {}
    if day:
        values |= _date_parts(day)
    for name, value in values.items():
        template = template.replace("{" + name + "}", value)
    return template.rstrip("/")  # of a folder of part files


def _date_parts(key: str) -> dict[str, str]:
    """The values of the placeholders for a partition."""
    moment = partitions.nominal_start(key).isoformat()
    parts = {"year": moment[:4], "month": moment[5:7], "day": moment[8:10], "hour": moment[11:13]}
    return parts | {"date": moment[:10]}


def list_landed(template: str, cadence: Cadence = DAILY) -> dict[str, FileStat]:
    """List the landed files of a feed by their partition, in order, by one listing of its folder.

    Args:
        template: path template of the feed.
        cadence: of its partitions. A file whose date is not the start of one is not listed.

    Raises:
        StorageError: the folder cannot be read.
    """
    before, brace, after = source_uri(template).partition("{")
    folder, _, prefix = before.rpartition("/")
    pattern, named = re.escape(prefix), set[str]()
    for part in re.split(r"(\{[a-z]+\})", brace + after):
        name = part[1:-1]
        if part not in _DATE_PARTS:
            pattern += re.escape(part)
        elif name in named:
            pattern += f"(?P={name})"
        else:
            pattern += f"(?P<{name}>{_DATE_PARTS[part]})"
            named.add(name)
    landed = {}
    for path, stat in _landed_paths(folder, pattern).items():
        if match := re.fullmatch(pattern, path):
            parts = match.groupdict()
            day = parts.get("date") or f"{parts['year']}-{parts['month']}-{parts.get('day', '01')}"
            key = f"{day}T{parts.get('hour', '00')}" if cadence.unit == "hour" else day
            key = key[:7] if cadence.unit == "month" else key
            if cadence.is_key(key) and _date_parts(key).items() >= parts.items():
                landed[key] = stat
    return {day: landed[day] for day in sorted(landed)}


def _landed_paths(folder: str, pattern: str) -> dict[str, FileStat]:
    """The landed files of a folder whose path matches, and complete folders of part files, by their path."""
    landed: dict[str, FileStat] = {}
    parts: dict[str, dict[str, FileStat]] = {}
    for path, stat in object_store.list_files(folder, recursive=True, copied=True).items():
        if re.fullmatch(pattern, path):
            landed[path] = stat
        elif match := re.match(rf"(?P<__folder>{pattern})/(?P<__part>.+)", path):
            parts.setdefault(match["__folder"], {})[match["__part"]] = stat
    folders = {path: PartFolder(f"{folder}/{path}", files) for path, files in parts.items()}
    beside: dict[str, list[PartFolder]] = {}
    for path, part_folder in folders.items():
        if part_folders.SUCCESS in part_folder.files:
            beside.setdefault(path.rpartition("/")[0], []).append(part_folder)
    complete = {p: f for p, f in folders.items() if not f.missing(beside.get(p.rpartition("/")[0], ()))}
    return landed | {path: part_folder.stat for path, part_folder in complete.items()}
