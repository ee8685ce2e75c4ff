"""This process and this library: memory, version, digest, and how a process ends."""

from __future__ import annotations

import functools
import hashlib
import os
import resource
import sys
from pathlib import Path
from typing import NoReturn

from perennial import __version__
from perennial.core.settings import ROOT


def peak_memory_mb() -> int:
    """Peak resident memory of this process, in MiB (Linux counts KiB, macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak // (1024 * 1024 if sys.platform == "darwin" else 1024))


@functools.cache
def code_version() -> str:
    """The library's version and, in a checkout, its commit (``PERENNIAL_COMMIT`` in an image)."""
    commit = os.environ.get("PERENNIAL_COMMIT", "")
    if not commit:
        head = ROOT / ".git" / "HEAD"
        try:
            text = head.read_text().strip()
            commit = (head.parent / text[5:]).read_text().strip() if text.startswith("ref: ") else text
        except OSError:
            commit = ""
    return f"{__version__}+{commit[:12]}" if commit else __version__


@functools.cache
def library_digest() -> str:
    """SHA-256 of this library's source: equal in an image and in the place that starts it, or a step is not run."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def flush_and_exit(status: int) -> NoReturn:
    """Flush what was printed and end at once.

    A native thread of a data library that is still joinable when the interpreter tears down calls std::terminate:
    a process that has done its work would die of SIGABRT. Seen with Python 3.12 after a long loop, cause unknown.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
