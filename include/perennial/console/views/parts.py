"""Parts of a page that are read on their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from perennial.core import unexpected_errors

Part = TypeVar("Part")


class Parts:
    """Reads parts of a page, and collects why some cannot be read.

    Attributes:
        problems: what cannot be shown, with cause and remedy.
    """

    def __init__(self) -> None:
        self.problems: list[tuple[str, str, str]] = []

    def read(self, title: str, function: Callable[[], Part], default: Part) -> Part:
        """What the function returns; the default if it fails."""
        try:
            return function()
        except Exception as error:
            known = unexpected_errors.translate(error, title)
            self.problems.append((title, known.cause, known.remedy))
            return default
