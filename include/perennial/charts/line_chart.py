"""Lines over partitions, or over numbers: values, limits, and events such as a change of the champion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from perennial.charts import _axes
from perennial.charts.markup import Markup, element, figure, number, picture, table, text

X = str | float
#: ``line``: one of the values to compare. ``limit``: what a value must not cross. ``reference``: what it is compared
#: with. ``dots``: values without a line between them.
Role = Literal["line", "limit", "reference", "dots"]
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 14, 24
#: Width that the text of a key needs, beside the first or the last one, which are not centred.
_LABEL = 100
#: Most x values at which the chart tells its values under the pointer.
_MAX_READINGS = 400


@dataclass(frozen=True)
class Series:
    """Values that belong together.

    Attributes:
        name: for the legend.
        points: x and value; None is a gap. x is the key of a partition, or a number.
        role: how it is drawn.
        states: points that are emphasised, by x: ``bad`` or ``suspected``.
    """

    name: str
    points: Sequence[tuple[X, float | None]]
    role: Role = "line"
    states: Mapping[X, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """A moment that is marked by a vertical line.

    Attributes:
        x: where.
        label: what, such as ``version 3 promoted``.
        short: a few characters at the line's top, such as ``v3``.
    """

    x: X
    label: str
    short: str = ""


@dataclass(frozen=True)
class LineChart:
    """A chart of lines.

    Attributes:
        title: what is shown.
        series: the lines.
        events: moments to mark.
        x_name: name of the x axis, for the table.
        description: for those who cannot see the picture; made from the numbers when empty.
    """

    title: str
    series: Sequence[Series]
    events: Sequence[Event] = ()
    x_name: str = "partition"
    description: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is no value to draw."""
        return not self._values()

    def svg(self, width: int = 420, height: int = 180) -> Markup:
        """The picture.

        Args:
            width: in its own units, which are pixels where the page does not scale it.
            height: likewise.
        """
        if self.is_empty:
            note = element("text", text("no values yet"), x=width / 2, y=height / 2, class_="chart-empty")
            return picture(width, height, self.title, "no values yet", note)
        y = _axes.Scale(*_axes.value_range(self._values()), height - _BOTTOM, _TOP)
        xs = self._xs()
        positions = [_axes.position(x) for x in xs]
        x = _axes.Scale(min(positions), max(positions), _LEFT + 4.0, width - _RIGHT - 4.0)
        content = [
            self._grid(x, y, width, height),
            *(_line(series, number_, x, y) for number_, series in self._numbered()),
            *(_event(event, x, height) for event in self.events if self._covers(event)),
            self._readings(x, height),
        ]
        return picture(width, height, self.title, self.description or self._described(), *content)

    def table(self) -> Markup:
        """The numbers, latest first, with the events in a column of their own."""
        columns = [dict(series.points) for series in self.series]
        labels: dict[X, str] = {}
        for event in self.events:
            labels[event.x] = "; ".join(filter(None, (labels.get(event.x), event.label)))
        heads = [self.x_name, *(series.name for series in self.series), *(["event"] if labels else [])]
        rows = [
            [_shown(x), *(number(c.get(x)) for c in columns), *([labels.get(x, "")] if labels else [])]
            for x in sorted({*self._xs(), *labels}, key=_axes.position, reverse=True)
        ]
        return table(heads, rows)

    def figure(self, width: int = 420, height: int = 180) -> Markup:
        """Picture, legend and table."""
        return figure(self.title, self.svg(width, height), self._legend(), self.table())

    def _numbered(self) -> list[tuple[int, Series]]:
        """The series, with the number of the colour of each that is compared."""
        numbered, count = [], 0
        for series in self.series:
            if series.role in ("line", "dots"):
                count += 1
            numbered.append((count, series))
        return numbered

    def _values(self) -> list[float]:
        return [v for s in self.series for _, v in s.points if v is not None and math.isfinite(v)]

    def _xs(self) -> list[X]:
        """The x values, in order."""
        all_of_them = {x for s in self.series for x, _ in s.points if not math.isnan(_axes.position(x))}
        return sorted(all_of_them, key=_axes.position)

    def _covers(self, event: Event) -> bool:
        positions = [_axes.position(x) for x in self._xs()]
        return min(positions) <= _axes.position(event.x) <= max(positions)

    def _described(self) -> str:
        """The range and the last value of each line, in words."""
        parts = []
        for series in self.series:
            values = [(x, v) for x, v in series.points if v is not None]
            if values:
                x, value = values[-1]
                parts.append(f"{series.name}: {number(value)} at {_shown(x)}")
        return "; ".join(parts)

    def _grid(self, x: _axes.Scale, y: _axes.Scale, width: int, height: int) -> Markup:
        parts = []
        for value in _axes.ticks(y.low, y.high):
            parts.append(
                element("line", x1=_LEFT, x2=width - _RIGHT, y1=y(value), y2=y(value), class_="chart-grid")
            )
            parts.append(
                element(
                    "text",
                    text(number(value)),
                    x=_LEFT - 6,
                    y=y(value) + 3.5,
                    class_="chart-tick chart-value",
                )
            )
        xs = self._xs()
        shown = _apart(_axes.evenly(xs, 4), x) if isinstance(xs[0], str) else [*_numeric_ticks(x)]
        for i, value_x in enumerate(shown):
            anchor = "first" if i == 0 else "last" if i == len(shown) - 1 else "inner"
            anchor = "inner" if len(shown) == 1 else anchor
            at = x(_axes.position(value_x))
            parts.append(
                element(
                    "text", text(_shown(value_x)), x=at, y=height - 7, class_=f"chart-tick chart-{anchor}"
                )
            )
        return element("g", *parts, aria_hidden="true")

    def _readings(self, x: _axes.Scale, height: int) -> Markup:
        """Invisible columns that tell their values under the pointer."""
        xs = self._xs()
        if len(xs) > _MAX_READINGS:
            return Markup("")
        columns = [(series, dict(series.points)) for series in self.series]
        labels: dict[X, list[str]] = {}
        for event in self.events:
            labels.setdefault(event.x, []).append(event.label)
        positions = [x(_axes.position(value)) for value in xs]
        parts = []
        for i, value in enumerate(xs):
            left = (positions[i - 1] + positions[i]) / 2 if i else positions[i] - 4
            right = (positions[i] + positions[i + 1]) / 2 if i + 1 < len(xs) else positions[i] + 4
            lines = [f"{s.name}: {number(c[value])}" for s, c in columns if c.get(value) is not None]
            reading = "\n".join([_shown(value), *lines, *labels.get(value, [])])
            parts.append(
                element(
                    "g",
                    element("title", _lines(reading)),
                    element(
                        "rect", x=left, y=_TOP, width=max(right - left, 1.0), height=height - _TOP - _BOTTOM
                    ),
                    element("line", x1=positions[i], x2=positions[i], y1=_TOP, y2=height - _BOTTOM),
                    class_="chart-reading",
                )
            )
        return element("g", *parts, aria_hidden="true")

    def _legend(self) -> Markup:
        items = [
            element("li", element("span", class_=f"chart-key {_classes(s, n)}"), text(s.name))
            for n, s in self._numbered()
        ]
        return element("ul", *items, class_="chart-legend")


def _apart(keys: Sequence[X], x: _axes.Scale) -> list[X]:
    """The keys without those whose text would cover that of another; the first and the last one stay."""
    shown = list(keys[:1])
    for key in keys[1:-1]:
        at = x(_axes.position(key))
        if at - x(_axes.position(shown[-1])) >= _LABEL and x(_axes.position(keys[-1])) - at >= _LABEL:
            shown.append(key)
    return [*shown, *keys[1:][-1:]]


def _numeric_ticks(x: _axes.Scale) -> list[float]:
    """Round values on an axis of numbers."""
    return _axes.ticks(x.low, x.high) if x.high > x.low else [x.low]


def _classes(series: Series, colour: int) -> str:
    return f"chart-{series.role}" + (f" chart-c{colour}" if series.role in ("line", "dots") else "")


def _line(series: Series, colour: int, x: _axes.Scale, y: _axes.Scale) -> Markup:
    """A line with gaps, and dots where a point stands alone or is emphasised."""
    path, dots, previous = [], [], False
    is_stepped = series.role in ("limit", "reference")
    points = [(p, v) for p, v in series.points if not math.isnan(_axes.position(p))]
    points.sort(key=lambda point: _axes.position(point[0]))
    is_value = [v is not None and math.isfinite(v) for _, v in points]
    for i, (key, value) in enumerate(points):
        if value is None or not is_value[i]:
            previous = False
            continue
        at, height = x(_axes.position(key)), y(value)
        if previous and is_stepped:  # it holds until it changes
            path.append(f"H{at:.1f}V{height:.1f}")
        else:
            path.append(f"{'L' if previous else 'M'}{at:.1f} {height:.1f}")
        alone = not previous and not (i + 1 < len(points) and is_value[i + 1])
        state = series.states.get(key, "")
        if series.role == "dots" or alone or state in ("bad", "suspected"):
            dots.append(element("circle", cx=at, cy=height, r=3.5, class_=f"chart-dot chart-{state}".strip()))
        previous = True
    drawn = [] if series.role == "dots" else [element("path", d=" ".join(path), class_="chart-path")]
    return element("g", *drawn, *dots, class_=_classes(series, colour))


def _event(event: Event, x: _axes.Scale, height: int) -> Markup:
    at = x(_axes.position(event.x))
    parts = [
        element("title", text(event.label)),
        element("line", x1=at, x2=at, y1=_TOP, y2=height - _BOTTOM),
    ]
    if event.short:
        parts.append(element("text", text(event.short), x=at, y=_TOP - 4, class_="chart-inner"))
    return element("g", *parts, class_="chart-event")


def _lines(value: str) -> Markup:
    """Text of several lines, escaped line by line, since line breaks cannot be printed."""
    return Markup("\n".join(text(line) for line in value.split("\n")))


def _shown(x: X) -> str:
    return x if isinstance(x, str) else number(x)
