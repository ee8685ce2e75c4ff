"""Readings of a sample between which its text does not decide, and what was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["ReadingChoices", "Undecided"]


@dataclass(frozen=True)
class ReadingChoices:
    """How a sample is read where its text leaves it open; None: as is likeliest.

    Attributes:
        header: whether the first line of text files has the names of columns.
        date_order: whether the ``day`` precedes the month in dates of numbers, or the ``month`` the day.
        decimal: the decimal sign.
        zero_one: what columns are that have only 0 and 1: ``numbers`` or ``booleans``.
    """

    header: Literal["yes", "no"] | None = None
    date_order: Literal["day", "month"] | None = None
    decimal: Literal[".", ","] | None = None
    zero_one: Literal["numbers", "booleans"] | None = None


@dataclass(frozen=True)
class Undecided:
    """Something about the text of a sample that can be read in several ways.

    Attributes:
        choice: the attribute of `ReadingChoices`.
        question: what is asked about it.
        used: how it is read now.
        previews: what comes of each way.
    """

    choice: str
    question: str
    used: str
    previews: Mapping[str, str] = field(default_factory=dict)

    def option(self, way: str) -> str:
        """The option of the command that chooses a way."""
        if self.choice == "header":
            return "--header" if way == "yes" else "--no-header"
        return f"--{self.choice.replace('_', '-')} {way}"

    @property
    def remark(self) -> str:
        """What is said about it where nobody is asked."""
        others = [f"{self.option(way)}: {shown}" for way, shown in self.previews.items() if way != self.used]
        return f"{self.question}: {self.previews[self.used]} ({'; '.join(others)})"
