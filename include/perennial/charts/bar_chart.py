"""Horizontal bars, the largest first or in a given order: importance, residuals by size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perennial.charts.markup import Markup, element, figure, number, picture, table, text

_ROW, _LEFT, _RIGHT = 18, 150, 60
#: Characters of a name that are shown.
_NAME_LENGTH = 24


@dataclass(frozen=True)
class BarChart:
    """A chart of bars, none of them below zero.

    Attributes:
        title: what is shown.
        bars: name and value of each, from top to bottom.
        value_name: what the values are, for the table.
    """

    title: str
    bars: Sequence[tuple[str, float]]
    value_name: str = "value"

    def svg(self, width: int = 520) -> Markup:
        """The picture.

        Args:
            width: in its own units.
        """
        if not self.bars:
            note = element("text", text("no values yet"), x=width / 2, y=20, class_="chart-empty")
            return picture(width, 40, self.title, "no values yet", note)
        largest = max(value for _, value in self.bars) or 1.0
        parts = []
        for i, (name, value) in enumerate(self.bars):
            top = i * _ROW
            length = max(0.0, value / largest) * (width - _LEFT - _RIGHT)
            parts += [
                element(
                    "text", text(name, _NAME_LENGTH), x=_LEFT - 6, y=top + 13, class_="chart-tick chart-value"
                ),
                element("rect", x=_LEFT, y=top + 3, width=length, height=_ROW - 6.0, class_="chart-bar"),
                element(
                    "text",
                    text(number(value)),
                    x=_LEFT + length + 5,
                    y=top + 13,
                    class_="chart-tick chart-first",
                ),
            ]
        described = "; ".join(f"{name}: {number(value)}" for name, value in self.bars[:5])
        return picture(width, len(self.bars) * _ROW + 2, self.title, described, element("g", *parts))

    def table(self) -> Markup:
        """The numbers."""
        return table(["name", self.value_name], [(name, number(value)) for name, value in self.bars])

    def figure(self, width: int = 520) -> Markup:
        """Picture and table."""
        return figure(self.title, self.svg(width), Markup(""), self.table())
