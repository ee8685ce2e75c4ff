"""Values with their intervals, a row for each name: the metric of each slice, of a version and its champion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from perennial.charts import _axes
from perennial.charts.markup import Markup, element, figure, number, picture, table, text

_RIGHT, _TOP, _BOTTOM = 14, 6, 24
#: Width of a character of a name, about; and the least and most width of the names.
_CHARACTER, _LEAST, _MOST = 6.2, 40, 150
#: Height of a row, of which each series takes a part.
_ROW, _SERIES = 14, 8
#: Characters of a name that are shown.
_NAME_LENGTH = 24


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its interval.

    Attributes:
        value: the value.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class IntervalRow:
    """A row of the chart.

    Attributes:
        name: what the values belong to.
        intervals: by name of the series; a series without a value is missing.
        note: a word about it for the table and under the pointer, such as its number of rows.
        state: ``bad`` or ``suspected`` emphasises the value of the first series.
    """

    name: str
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    note: str = ""
    state: str = ""


@dataclass(frozen=True)
class IntervalChart:
    """A chart of dots with intervals as lines, along one axis.

    Attributes:
        title: what is shown.
        series: names of the series, in order; at most four.
        rows: from top to bottom.
        row_name: what a row is, for the table.
        reference: a value to compare with, drawn as a dotted line; None if there is none.
        reference_name: what it is, for the legend.
        shown: a value as text.
    """

    title: str
    series: Sequence[str]
    rows: Sequence[IntervalRow]
    row_name: str = "name"
    reference: float | None = None
    reference_name: str = ""
    shown: Callable[[float | None], str] = number

    def svg(self, width: int = 420) -> Markup:
        """The picture.

        Args:
            width: in its own units.
        """
        ends = [x for row in self.rows for i in row.intervals.values() for x in (i.low, i.value, i.high)]
        if not ends:
            note = element("text", text("no values yet"), x=width / 2, y=20, class_="chart-empty")
            return picture(width, 40, self.title, "no values yet", note)
        ends += [self.reference] if self.reference is not None else []
        longest = max(len(text(row.name, _NAME_LENGTH)) for row in self.rows)
        left = min(max(longest * _CHARACTER + 12, _LEAST), _MOST)
        scale = _axes.Scale(*_axes.value_range(ends), left + 4.0, width - _RIGHT - 4.0)
        step = _ROW + _SERIES * len(self.series)
        bottom = _TOP + step * len(self.rows)
        rows = [self._row(row, _TOP + i * step, step, scale) for i, row in enumerate(self.rows)]
        content = [self._grid(scale, bottom), *self._reference_line(scale, bottom), *rows]
        return picture(width, bottom + _BOTTOM, self.title, self._described(), *content)

    def table(self) -> Markup:
        """The numbers."""
        has_notes = any(row.note for row in self.rows)
        heads = [self.row_name, *self.series, *(["note"] if has_notes else [])]
        rows = [
            (
                row.name,
                *(self._interval(row.intervals.get(name)) for name in self.series),
                *([row.note] if has_notes else []),
            )
            for row in self.rows
        ]
        if self.reference is not None:
            empty = [""] * (len(heads) - 2)
            rows.append((self.reference_name, self.shown(self.reference), *empty))
        return table(heads, rows)

    def figure(self, width: int = 420) -> Markup:
        """Picture, legend and table."""
        items = [
            element("li", element("span", class_=f"chart-key chart-dots chart-c{n}"), text(name))
            for n, name in enumerate(self.series, 1)
        ]
        if self.reference is not None:
            key = element("span", class_="chart-key chart-reference")
            items.append(element("li", key, text(self.reference_name)))
        legend = element("ul", *items, class_="chart-legend")
        return figure(self.title, self.svg(width), legend, self.table())

    def _row(self, row: IntervalRow, top: int, step: int, scale: _axes.Scale) -> Markup:
        """The values of a row, and an invisible strip that tells them under the pointer."""
        left, right = scale.start - 4, scale.end + 4
        middle = top + step / 2
        readings = [f"{name}: {self._interval(i)}" for name, i in row.intervals.items()]
        reading = "\n".join(text(line) for line in (row.name, *readings, row.note) if line)
        parts = [
            element("title", Markup(reading)),
            element("text", text(row.name, _NAME_LENGTH), x=left - 6, y=middle + 4, class_="chart-value"),
            element("rect", x=left, y=top, width=right - left, height=step),
        ]
        if not row.intervals:
            note = element("text", text(row.note), x=left + 6, y=middle + 4, class_="chart-first")
            return element("g", *parts, note, class_="chart-reading")
        for n, name in enumerate(self.series, 1):
            interval = row.intervals.get(name)
            if interval is None:
                continue
            y = middle + (n - (len(self.series) + 1) / 2) * _SERIES
            state = row.state if n == 1 else ""
            line = element("line", x1=scale(interval.low), x2=scale(interval.high), y1=y, y2=y)
            name_of_class = f"chart-dot chart-{state}" if state else "chart-dot"
            dot = element(
                "circle", cx=scale(interval.value), cy=y, r=5 if state else 3.5, class_=name_of_class
            )
            parts.append(element("g", line, dot, class_=f"chart-interval chart-c{n}"))
        return element("g", *parts, class_="chart-reading")

    def _grid(self, scale: _axes.Scale, bottom: int) -> Markup:
        parts = []
        for value in _axes.ticks(scale.low, scale.high):
            at = scale(value)
            parts += [
                element("line", x1=at, x2=at, y1=_TOP, y2=bottom, class_="chart-grid"),
                element("text", text(self.shown(value)), x=at, y=bottom + 16, class_="chart-inner"),
            ]
        return element("g", *parts, aria_hidden="true")

    def _reference_line(self, scale: _axes.Scale, bottom: int) -> list[Markup]:
        if self.reference is None:
            return []
        path = element("path", d=f"M{scale(self.reference):.1f} {_TOP}V{bottom}", class_="chart-path")
        return [element("g", path, class_="chart-reference", aria_hidden="true")]

    def _described(self) -> str:
        """The values of the first series, in words."""
        first = self.series[0]
        rows = [(row.name, row.intervals[first].value) for row in self.rows if first in row.intervals]
        readings = [f"{name}: {self.shown(value)}" for name, value in rows[:5]]
        if self.reference is not None:
            readings.append(f"{self.reference_name}: {self.shown(self.reference)}")
        return "; ".join(readings)

    def _interval(self, interval: Interval | None) -> str:
        if interval is None:
            return "–"
        return f"{self.shown(interval.value)} ({self.shown(interval.low)} to {self.shown(interval.high)})"
