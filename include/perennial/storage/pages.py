"""Pages for people: reports, data docs, data profiles. No step depends on one.

A page is ``reports/<model>/<kind>/<date or range>.html`` in the lake.

A page that cannot be drawn or stored neither fails its step nor holds back its manifest: the log says why, and a page
that says it takes its place.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from perennial.core import html, unexpected_errors
from perennial.core.errors import PerennialError
from perennial.core.partitions import KEY_PATTERN
from perennial.core.settings import settings
from perennial.storage import object_store

log = logging.getLogger("perennial")
Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class Page:
    """A stored page.

    Attributes:
        uri: the file.
        kind: its folder: ``validation``, ``profile`` or ``monitor``.
        name: its partition or range, with a suffix such as ``-labels`` where it has one.
        written_ns: when it was written, in nanoseconds since 1970.
    """

    uri: str
    kind: str
    name: str
    written_ns: int

    def concerns(self, start: str, end: str) -> bool:
        """Whether its partitions and those from ``start`` to ``end`` have one in common."""
        keys = re.match(rf"({KEY_PATTERN})(?:\.\.({KEY_PATTERN}))?", self.name)
        if keys is None:
            return False
        return keys[1] <= end and (keys[2] or keys[1]) >= start


def find(model: str) -> list[Page]:
    """The stored pages of a model, by kind, and the latest partition first.

    Raises:
        StorageError: the lake cannot be read.
    """
    root = f"{settings().lake}/reports/{model}"
    stored = []
    for path, stat in object_store.list_files(root, recursive=True).items():
        kind, _, file = path.rpartition("/")
        if kind and file.endswith(".html"):
            stored.append(Page(f"{root}/{path}", kind, file.removesuffix(".html"), stat.modified_ns))
    stored.sort(key=lambda page: page.name, reverse=True)
    return sorted(stored, key=lambda page: page.kind)


def write(title: str, uris: Sequence[str], draw: Callable[[], Sequence[str]]) -> None:
    """Draw files and store them; never raises an `Exception`.

    Args:
        title: what is drawn, for the log and for the page that replaces it.
        uris: the files: pages (``.html``) and JSON.
        draw: returns the text of each file. If it raises, each file says so.
    """
    texts, reason = attempt(title, draw)
    for number, uri in enumerate(uris):
        text = texts[number] if texts is not None else _replacement(uri, title, reason)
        try:
            object_store.write_text(uri, text)
        except Exception as error:
            log.warning("%s could not be stored: %s", uri, why(error))


def attempt(title: str, draw: Callable[[], Drawn]) -> tuple[Drawn | None, str]:
    """Draw something; if that fails, log it.

    Returns:
        What was drawn, or None; and why it could not be drawn, or an empty text.
    """
    try:
        return draw(), ""
    except (
        BaseException
    ) as error:  # libraries that draw raise whatever pandas and numpy raise, MemoryError included
        if not unexpected_errors.is_failure(error):
            raise
        reason = why(error)
        log.warning("%s could not be drawn, which changes nothing else: %s", title, reason)
        unexpected_errors.log_traceback(error)
        return None, reason


def why(error: BaseException) -> str:
    """Why something could not be drawn; the text of a library's error may quote rows, so only its type and place."""
    return error.cause if isinstance(error, PerennialError) else unexpected_errors.origin(error)


def list_of_omissions(heading: str, omitted: Mapping[str, str], limit: int = 60) -> str:
    """HTML of what a page does not show, each with the reason; empty if there is nothing.

    Args:
        heading: of the list.
        omitted: reason by name.
        limit: characters of a name that are shown.
    """
    if not omitted:
        return ""
    items = "".join(
        f"<li>{html.escape(html.printable(name, limit))}: {html.escape(reason)}</li>"
        for name, reason in omitted.items()
    )
    return f"<h2>{html.escape(heading)}</h2><ul>{items}</ul>"


def _replacement(uri: str, title: str, reason: str) -> str:
    """The content of a file that could not be drawn."""
    if not uri.endswith(".html"):
        return json.dumps({"title": title, "not_drawn": reason})
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title></head>'
        f'<body style="font: 15px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto">'
        f"<h1>{html.escape(title)}</h1><p>This page could not be drawn: {html.escape(reason)}.</p>"
        "<p>Nothing else is affected: the step ended as usual. What to do: report the line above; running the step "
        "again with <code>--force</code> draws the page again.</p></body></html>"
    )
