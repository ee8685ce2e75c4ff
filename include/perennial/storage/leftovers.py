"""Temporary folders and files, and the removal of those that killed runs left behind.

A run removes what it makes. One that is killed cannot; what it leaves may hold rows. `temporary_folder` removes old
folders of its kind, and `sweep_daily`, which each step calls, everything else.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from perennial.core.settings import settings

log = logging.getLogger("perennial")
#: Seconds for which nothing is a leftover. A file is written within minutes; a folder that is in use is locked.
SAFE_AGE = 86_400.0
#: The same for files that a running process may keep without writing to them. The longest training takes two days.
SAFE_AGE_UNLOCKED = 3 * 86_400.0
#: Seconds between two searches of the lake and of the working folder.
SWEEP_SECONDS = 86_400.0
_TEMPORARY_FILE = re.compile(r"\..+\.[0-9a-f]{32}")
#: Files of the working folder that have no lock: rendezvous files, and what DuckDB spills.
_UNLOCKED_FILE = re.compile(r".+\.rendezvous\.json|duckdb_temp_.+")
#: Prefixes of the temporary folders below ``tmp`` of the working folder.
_PREFIXES = ("data-", "perennial-sample-", "reproduce-", "sign-", "sorted-", "train-")


def temporary_file(target: Path) -> Path:
    """A new name for a file beside ``target``, which replaces it once it is complete."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}")


@contextlib.contextmanager
def temporary_folder(prefix: str, root: Path | None = None) -> Iterator[Path]:
    """Create a folder for one run, and remove it afterwards; remove those of killed runs before.

    Args:
        prefix: begins the folder's name, and those of its kind.
        root: the folder above; ``tmp`` of the working folder when not given, where `sweep_daily` knows the prefixes.

    Raises:
        ValueError: nothing would ever remove such a folder of a killed run.
    """
    if root is None and prefix not in _PREFIXES:
        raise ValueError(f"leftovers._PREFIXES has no {prefix!r}")
    root = root or settings().home / "tmp"
    root.mkdir(parents=True, exist_ok=True)
    _remove_folders(root, prefix)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=root) as folder, _locked(Path(folder)):
        yield Path(folder)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder while it is in use: the lock ends with the process, however that ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system has locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _remove_folders(root: Path, prefix: str) -> list[Path]:
    """Remove the folders of killed runs; returns them."""
    return [
        folder
        for folder in root.glob(f"{prefix}*")
        if _is_old(folder, SAFE_AGE) and _remove_unless_locked(folder)
    ]


def _remove_unless_locked(folder: Path) -> bool:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # in use
        return False
    except OSError:  # without locks, only its age tells
        if not _is_old(folder, SAFE_AGE_UNLOCKED):
            return False
    finally:
        os.close(handle)
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def sweep_daily() -> bool:
    """Remove leftovers of killed runs, if that was not done within a day. It never fails: no step depends on it.

    Returns:
        Whether they were searched for.
    """
    stamp = settings().home / "tmp" / ".swept"
    try:
        if stamp.exists() and not _is_old(stamp, SWEEP_SECONDS):
            return False
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()
        removed = sweep()
    except OSError as error:
        log.warning("Leftovers of killed runs could not be removed: %s", error.strerror)
        return False
    if removed:
        log.info("%d leftovers of killed runs were removed, such as %s", len(removed), removed[0])
    return True


def sweep() -> list[Path]:
    """Remove leftovers of killed runs from the working folder and, unless it is on S3, the lake; returns them."""
    current = settings()
    removed = [folder for prefix in _PREFIXES for folder in _remove_folders(current.home / "tmp", prefix)]
    roots = {current.home / "tmp", current.home / "cache"}
    if "://" not in current.lake:
        roots.add(Path(current.lake))
    for root in roots:
        for path in _files(root):
            if _TEMPORARY_FILE.fullmatch(path.name):
                age = SAFE_AGE
            elif _UNLOCKED_FILE.fullmatch(path.name) and path.is_relative_to(current.home / "tmp"):
                age = SAFE_AGE_UNLOCKED
            else:
                continue
            if _is_old(path, age):
                path.unlink(missing_ok=True)
                removed.append(path)
    return removed


def _files(root: Path) -> Iterator[Path]:
    """The files below a folder, without those of Delta tables and of folders of single runs."""
    for folder, folders, files in os.walk(root):
        if "_delta_log" in folders:
            folders.clear()  # only the Delta library writes there
            continue
        folders[:] = [name for name in folders if not name.startswith(_PREFIXES)]
        yield from (Path(folder, name) for name in files)


def _is_old(path: Path, seconds: float) -> bool:
    """Whether nothing was written to a file, or added to a folder, for a time."""
    try:
        return path.stat().st_mtime < time.time() - seconds
    except OSError:  # removed meanwhile, or not accessible
        return False
