"""Reports, data docs and data profiles of the lake, as the files that a browser asks for.

A report shows values of the data, so its page is not trusted: the browser opens it in a sandbox without an origin
(scripts draw the charts, but reach neither the session nor the network).
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from perennial.core.settings import settings
from perennial.storage import object_store

#: Files that are served, by suffix, with their media type.
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": (
        "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob: data:; "
        "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; worker-src blob:; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-cache",
}
#: Titles by kind of page.
TITLES = {
    "monitor": "Monitoring reports",
    "profile": "Data profiles",
    "training": "Training reports",
    "validation": "Data docs",
}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=-]{0,127}")


def is_plain_name(name: str) -> bool:
    """Whether a text is a plain name: no way up, no hidden file."""
    return bool(_NAME.fullmatch(name))


def is_plain_path(path: str) -> bool:
    """Whether every part of ``path`` is a plain name."""
    parts = path.split("/")
    return 2 <= len(parts) <= 8 and all(is_plain_name(p) for p in parts)


def media_type(path: str) -> str | None:
    """The media type of a file; None if files of its kind are not served."""
    return MEDIA_TYPES.get(PurePosixPath(path).suffix) if is_plain_path(path) else None


def read(path: str) -> str:
    """Read one report, by its path below ``reports`` of the lake.

    Raises:
        FileNotFoundError: there is none, or it is a link that leads out of the reports.
        StorageError: the lake cannot be read.
    """
    root = f"{settings().lake}/reports"
    if not object_store.is_remote(root):
        file = Path(root, path).resolve()
        if not file.is_relative_to(Path(root).resolve()) or not file.is_file():
            raise FileNotFoundError(path)
    return object_store.read_text(f"{root}/{path}")
