"""This process and this library: memory, version, digest, and the end of a process."""

from __future__ import annotations

import functools
import hashlib
import os
import resource
import sys
from pathlib import Path
from typing import NoReturn

from perennial import __version__
from perennial.core.settings import CHECKOUT

__all__ = [
    "NOT_IN_PODS",
    "PACKAGE",
    "code_version",
    "flush_and_exit",
    "library_digest",
    "peak_memory_mb",
    "pod_files",
]

PACKAGE = Path(__file__).resolve().parents[1]
#: Folders and modules of the library that neither a step nor a training worker imports.
NOT_IN_PODS = (
    "alerting",
    "cli/check",
    "cli/console.py",
    "cli/doctor",
    "cli/incidents.py",
    "cli/missing.py",
    "cli/new",
    "cli/quarantine.py",
    "cli/spec_reference.py",
    "cli/status.py",
    "console",
    "local_stack",
)


def peak_memory_mb() -> int:
    """Peak resident memory of this process, in MiB (Linux counts KiB, macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak // (1024 * 1024 if sys.platform == "darwin" else 1024))


@functools.cache
def code_version() -> str:
    """The library's version and, in a checkout, its commit (``PERENNIAL_COMMIT`` in an image)."""
    commit = os.environ.get("PERENNIAL_COMMIT", "")
    if not commit and CHECKOUT:
        head = CHECKOUT / ".git" / "HEAD"
        try:
            text = head.read_text().strip()
            commit = (head.parent / text[5:]).read_text().strip() if text.startswith("ref: ") else text
        except OSError:
            commit = ""
    return f"{__version__}+{commit[:12]}" if commit else __version__


@functools.cache
def library_digest(package: Path = PACKAGE) -> str:
    """SHA-256 of the library's files that run in a pod.

    A step runs only in an image whose library has the same digest as the caller's.
    """
    digest = hashlib.sha256()
    for path in pod_files(package):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def pod_files(package: Path = PACKAGE) -> list[Path]:
    """The Python files of the library that can run in a pod, sorted: all except `NOT_IN_PODS`."""
    excluded = [package / name for name in NOT_IN_PODS]
    return [
        path
        for path in sorted(package.rglob("*.py"))
        if not any(path.is_relative_to(other) for other in excluded)
    ]


def flush_and_exit(status: int) -> NoReturn:
    """Flush standard output and error, and end the process without tearing down the interpreter.

    A native thread of a data library that is still joinable at tear-down calls std::terminate, and the process dies of
    SIGABRT after its work is done. Seen with Python 3.12 after a long loop; the cause is unknown.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
