"""A line of the size of a word: the course of one quantity in a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from perennial.charts import _axes
from perennial.charts.markup import Markup, element, number, picture


@dataclass(frozen=True)
class Sparkline:
    """The course of a quantity.

    Attributes:
        name: of the quantity.
        values: in order; None is a gap.
        limit: a value that it should not cross; None if there is none.
        state: of the last value: ``bad`` and ``suspected`` are emphasised.
    """

    name: str
    values: Sequence[float | None]
    limit: float | None = None
    state: str = ""

    def svg(self, width: int = 96, height: int = 24) -> Markup:
        """The picture; empty if there is no value."""
        known = [v for v in self.values if v is not None and math.isfinite(v)]
        if not known:
            return Markup("")
        bounds = [*known, *([self.limit] if self.limit is not None else [])]
        low, high = min(bounds), max(bounds)
        y = _axes.Scale(low, high, height - 3.0, 3.0)
        x = _axes.Scale(0, max(len(self.values) - 1, 1), 3.0, width - 4.0)
        path, previous, last = [], False, (0.0, 0.0)
        for i, value in enumerate(self.values):
            if value is None or not math.isfinite(value):
                previous = False
                continue
            last = (x(i), y(value))
            path.append(f"{'L' if previous else 'M'}{last[0]:.1f} {last[1]:.1f}")
            previous = True
        parts = [element("path", d=" ".join(path), class_="chart-path")]
        if self.limit is not None:
            at = y(self.limit)
            parts.insert(0, element("line", x1=0, x2=width, y1=at, y2=at, class_="chart-limit-line"))
        state = f" chart-{self.state}" if self.state in ("bad", "suspected") else ""
        parts.append(element("circle", cx=last[0], cy=last[1], r=2.5, class_=f"chart-dot{state}"))
        title = f"{self.name}: {number(known[-1])}" + (
            f", limit {number(self.limit)}" if self.limit is not None else ""
        )
        return picture(width, height, title, "", *parts, css_class="chart-spark chart-c1", is_fixed=True)
