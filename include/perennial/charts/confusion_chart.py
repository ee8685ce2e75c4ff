"""A confusion matrix: rows by actual and predicted class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perennial.charts.markup import Markup, element, figure, picture, table, text

_LEFT, _TOP, _ROW = 120, 34, 30
#: Characters of a class that are shown.
_NAME_LENGTH = 16


@dataclass(frozen=True)
class ConfusionChart:
    """A confusion matrix; the colour of a cell is its share of the actual class.

    Attributes:
        title: what is shown.
        classes: names of the classes.
        counts: rows by actual, then by predicted class.
    """

    title: str
    classes: Sequence[str]
    counts: Sequence[Sequence[int]]

    def svg(self, width: int = 520) -> Markup:
        """The picture.

        Args:
            width: in its own units.
        """
        size = (width - _LEFT) / max(1, len(self.classes))
        parts = [element("text", text("actual ↓   predicted →"), x=0, y=12, class_="chart-tick chart-first")]
        for j, name in enumerate(self.classes):
            parts.append(_label(name, _LEFT + (j + 0.5) * size, _TOP - 6, "chart-inner"))
        for i, (name, row) in enumerate(zip(self.classes, self.counts, strict=True)):
            top = _TOP + i * _ROW
            parts.append(_label(name, _LEFT - 8, top + 19, "chart-value"))
            for j, count in enumerate(row):
                share = count / (sum(row) or 1)
                parts += [
                    element(
                        "rect", x=_LEFT + j * size, y=top, width=size - 2, height=_ROW - 2.0,
                        class_="chart-bar", fill_opacity=f"{0.06 + 0.6 * share:.2f}",
                    ),
                    _label(f"{count:,} ({share:.0%})", _LEFT + (j + 0.5) * size, top + 19, "chart-inner"),
                ]  # fmt: skip
        described = "; ".join(
            f"{name}: {row[i]:,} of {sum(row):,} predicted correctly"
            for i, (name, row) in enumerate(zip(self.classes, self.counts, strict=True))
        )
        return picture(width, _TOP + len(self.classes) * _ROW, self.title, described, element("g", *parts))

    def table(self) -> Markup:
        """The numbers."""
        heads = ["actual", *(f"predicted {name}" for name in self.classes)]
        rows = [
            (name, *(f"{count:,}" for count in row))
            for name, row in zip(self.classes, self.counts, strict=True)
        ]
        return table(heads, rows)

    def figure(self, width: int = 520) -> Markup:
        """Picture and table."""
        return figure(self.title, self.svg(width), Markup(""), self.table())


def _label(name: str, x: float, y: float, anchor: str) -> Markup:
    return element("text", text(name, _NAME_LENGTH), x=float(x), y=float(y), class_=f"chart-tick {anchor}")
