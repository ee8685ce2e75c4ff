"""Two histograms over the same bins, side by side: what a column was at training, and what it is now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perennial.charts import _axes
from perennial.charts.markup import Markup, element, figure, picture, table, text

_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 6, 10, 24
#: Characters of a bin's name that are shown below it, and bins whose names fit there.
_NAME_LENGTH, _MAX_NAMES = 12, 6


@dataclass(frozen=True)
class HistogramChart:
    """Shares of rows by bin, of a reference and of current rows.

    Attributes:
        title: what is shown.
        bins: name of each bin, in order.
        reference: number of rows of the reference in each bin.
        current: number of current rows in each bin.
        names: of the two, for the legend.
    """

    title: str
    bins: Sequence[str]
    reference: Sequence[int]
    current: Sequence[int]
    names: tuple[str, str] = ("reference", "current")

    def svg(self, width: int = 420, height: int = 160) -> Markup:
        """The picture.

        Args:
            width: in its own units.
            height: likewise.
        """
        shares = self._shares()
        highest = max((max(pair) for pair in shares), default=0.0)
        if not highest:
            note = element("text", text("no values yet"), x=width / 2, y=height / 2, class_="chart-empty")
            return picture(width, height, self.title, "no values yet", note)
        y = _axes.Scale(0.0, highest * 1.05, height - _BOTTOM, _TOP)
        step = (width - _LEFT - _RIGHT) / len(self.bins)
        parts = [self._grid(y, width)]
        for i, (name, pair) in enumerate(zip(self.bins, shares, strict=True)):
            parts.append(self._bin(name, pair, _LEFT + i * step, step, y))
        parts.append(self._names(step, height))
        return picture(width, height, self.title, self._described(shares), *parts)

    def table(self) -> Markup:
        """The numbers."""
        rows = [
            (name, f"{a:,}", f"{p:.1%}", f"{b:,}", f"{q:.1%}")
            for name, a, b, (p, q) in zip(
                self.bins, self.reference, self.current, self._shares(), strict=True
            )
        ]
        heads = ["bin", *(head for name in self.names for head in (f"{name}, rows", "share"))]
        return table(heads, rows)

    def figure(self, width: int = 420, height: int = 160) -> Markup:
        """Picture, legend and table."""
        return figure(self.title, self.svg(width, height), self._legend(), self.table())

    def _shares(self) -> list[tuple[float, float]]:
        totals = sum(self.reference) or 1, sum(self.current) or 1
        return [(a / totals[0], b / totals[1]) for a, b in zip(self.reference, self.current, strict=True)]

    def _described(self, shares: Sequence[tuple[float, float]]) -> str:
        """The bin whose share changed most."""
        i = max(range(len(shares)), key=lambda i: abs(shares[i][1] - shares[i][0]))
        before, after = shares[i]
        return f"the largest change is in bin {self.bins[i]}: {before:.1%} to {after:.1%} of the rows"

    def _grid(self, y: _axes.Scale, width: int) -> Markup:
        parts = []
        for value in _axes.ticks(y.low, y.high, 3):
            at = y(value)
            parts += [
                element("line", x1=_LEFT, x2=width - _RIGHT, y1=at, y2=at, class_="chart-grid"),
                element(
                    "text", text(f"{value:.0%}"), x=_LEFT - 6, y=at + 3.5, class_="chart-tick chart-value"
                ),
            ]
        return element("g", *parts, aria_hidden="true")

    def _bin(self, name: str, pair: tuple[float, float], left: float, step: float, y: _axes.Scale) -> Markup:
        """Both bars of a bin, with its numbers under the pointer."""
        bar = step * 0.38
        numbers = f"{name}: {self.names[0]} {pair[0]:.1%}, {self.names[1]} {pair[1]:.1%}"
        bars = [
            element(
                "rect", x=left + step * 0.1 + i * bar, y=y(share), width=max(bar - 0.5, 0.5),
                height=y(0.0) - y(share), class_=f"chart-column chart-c{i + 1}",
            )
            for i, share in enumerate(pair)
        ]  # fmt: skip
        return element("g", element("title", text(numbers)), *bars)

    def _names(self, step: float, height: int) -> Markup:
        """Names of some bins below the axis."""
        every = -(-len(self.bins) // _MAX_NAMES)
        labels = [
            element(
                "text", text(name, _NAME_LENGTH), x=_LEFT + (i + 0.5) * step, y=height - 8.0,
                class_="chart-tick chart-inner",
            )
            for i, name in enumerate(self.bins)
            if i % every == 0
        ]  # fmt: skip
        return element("g", *labels, aria_hidden="true")

    def _legend(self) -> Markup:
        items = [
            element("li", element("span", class_=f"chart-key chart-dots chart-c{i + 1}"), text(name))
            for i, name in enumerate(self.names)
        ]
        return element("ul", *items, class_="chart-legend")
