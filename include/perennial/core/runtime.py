"""This process and this library: memory, version, digest, Git commit, and the end of a process."""

from __future__ import annotations

import configparser
import functools
import hashlib
import os
import resource
import sys
from pathlib import Path
from typing import NamedTuple, NoReturn

from perennial import __version__
from perennial.core.settings import CHECKOUT

__all__ = [
    "NOT_IN_PODS",
    "PACKAGE",
    "GitCheckout",
    "code_version",
    "find_git_checkout",
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
        checkout = find_git_checkout(CHECKOUT)
        # A copy without a repository of its own may lie in another one.
        commit = checkout.commit if checkout and checkout.root == CHECKOUT.resolve() else ""
    return f"{__version__}+{commit[:12]}" if commit else __version__


class GitCheckout(NamedTuple):
    """A working tree of Git.

    Attributes:
        root: its folder.
        commit: the commit that is checked out; empty if it is not known.
        remote: address of the remote ``origin``, as it is configured; empty if there is none.
    """

    root: Path
    commit: str
    remote: str


def find_git_checkout(folder: Path) -> GitCheckout | None:
    """The working tree that a folder is in, also a linked one, by Git's files; None if it is in none."""
    folder = folder.resolve()
    root = next((parent for parent in (folder, *folder.parents) if (parent / ".git").exists()), None)
    if root is None:
        return None
    try:
        directory = root / ".git"
        if directory.is_file():  # of a linked working tree, or of a submodule
            directory = root / directory.read_text().removeprefix("gitdir:").strip()
        common = directory / "commondir"  # of a linked working tree, whose branches are elsewhere
        shared = directory / common.read_text().strip() if common.is_file() else directory
        config = configparser.RawConfigParser(strict=False, allow_no_value=True)
        config.read(shared / "config")
        remote = config.get('remote "origin"', "url", fallback="")
        return GitCheckout(root, _git_head(directory, shared), remote)
    except (OSError, ValueError, configparser.Error):  # not as Git writes it, or not readable for this user
        return GitCheckout(root, "", "")


def _git_head(directory: Path, shared: Path) -> str:
    """The commit of a working tree; empty if its branch has none yet.

    Args:
        directory: Git's folder of the working tree.
        shared: the folder of its branches.
    """
    head = (directory / "HEAD").read_text().strip()
    if not head.startswith("ref: "):
        return head
    branch = head.removeprefix("ref: ")
    if (shared / branch).is_file():
        return (shared / branch).read_text().strip()
    packed = shared / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((commit for commit, _, name in (line.partition(" ") for line in lines) if name == branch), "")


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
