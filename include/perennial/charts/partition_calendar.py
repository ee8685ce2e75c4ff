"""A calendar of partitions: one square each, coloured by its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby

from perennial.charts.markup import Markup, element, figure, join, picture, table, text
from perennial.core.partitions import WEEKDAYS, Cadence, nominal_start

_SIZE, _GAP, _TOP = 12, 2, 16
_STEP = _SIZE + _GAP
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True)
class Square:
    """One partition.

    Attributes:
        key: of the partition.
        state: one of the calendar's states.
        label: what there is to say about it.
        is_flagged: whether a corner is marked.
        href: address of its page; empty if there is none.
    """

    key: str
    state: str
    label: str = ""
    is_flagged: bool = False
    href: str = ""


@dataclass(frozen=True)
class PartitionCalendar:
    """A calendar of partitions of one cadence.

    Days have a row for each weekday and a column for each week, hours a row for each day, weeks and months a row for
    each year.

    Attributes:
        title: what is shown.
        cadence: of the partitions.
        squares: the partitions, in order.
        states: description by state, in the order of the legend; the class of a square is ``cal-`` and its state.
        flag: what a marked corner means; empty if there are none.
    """

    title: str
    cadence: Cadence
    squares: Sequence[Square]
    states: Mapping[str, str]
    flag: str = ""

    def svg(self) -> Markup:
        """The picture."""
        blocks, top = [], 0
        columns = 1
        for label, block in self._blocks():
            drawn, rows, wide = self._block(label, block, top)
            blocks.append(drawn)
            top += _TOP + rows * _STEP + 4
            columns = max(columns, wide)
        counts = {s: sum(1 for q in self.squares if q.state == s) for s in self.states}
        described = "; ".join(f"{text_}: {counts[s]}" for s, text_ in self.states.items() if counts[s])
        width, height = self._left + columns * _STEP, max(top, _TOP)
        return picture(
            width, height, self.title, described, *blocks, css_class="chart-calendar", is_fixed=True,
            has_links=any(square.href for square in self.squares),
        )  # fmt: skip

    def table(self) -> Markup:
        """The partitions, latest first; links where they have a page, which is how keyboards reach it."""
        rows = [
            (
                element("a", text(q.key), href=q.href) if q.href else q.key,
                self.states.get(q.state, q.state),
                q.label,
            )
            for q in reversed(self.squares)
        ]
        return table(("partition", "state", "details"), rows)

    def figure(self) -> Markup:
        """Picture, legend and table."""
        items = [
            element("li", element("span", class_=f"cal-key cal-{s}"), text(t)) for s, t in self.states.items()
        ]
        if self.flag:
            items.append(element("li", element("span", class_="cal-key cal-flag"), text(self.flag)))
        legend = element("ul", *items, class_="chart-legend")
        scrolled = element(
            "div", self.svg(), class_="chart-scroll", tabindex=0, role="region", aria_label=self.title
        )
        return figure(self.title, scrolled, legend, self.table(), "calendar")

    @property
    def _left(self) -> int:
        """Width of the labels of rows and blocks."""
        return 52 if self.cadence.unit == "hour" else 34

    def _blocks(self) -> list[tuple[str, list[Square]]]:
        """The squares of each year; of each month for hours."""
        length = 7 if self.cadence.unit == "hour" else 4
        return [(label, list(of)) for label, of in groupby(self.squares, lambda square: square.key[:length])]

    def _block(self, label: str, squares: list[Square], top: int) -> tuple[Markup, int, int]:
        """One block: its picture, its rows and its columns."""
        cells = [(square, *self._cell(square.key, squares[0].key)) for square in squares]
        parts = [element("text", text(label), x=0, y=top + 11, class_="chart-tick cal-label")]
        parts += self._heads(cells, top)
        for square, row, column in cells:
            x, y = self._left + column * _STEP, top + _TOP + row * _STEP
            parts.append(_square(square, self.states.get(square.state, square.state), x, y))
        rows = 7 if self.cadence.unit == "day" else max(row for _, row, _ in cells) + 1
        return join(parts), rows, max(column for _, _, column in cells) + 1

    def _cell(self, key: str, first: str) -> tuple[int, int]:
        """Row and column of a partition in the block that begins with ``first``."""
        start, begin = nominal_start(key), nominal_start(first)
        match self.cadence.unit:
            case "day":
                monday = begin - timedelta(days=begin.weekday())
                return start.weekday(), (start - monday).days // 7
            case "hour":
                return (start.date() - begin.date()).days, start.hour
            case "week":
                return 0, (start.timetuple().tm_yday - 1) // 7
            case _:
                return 0, start.month - 1

    def _heads(self, cells: list[tuple[Square, int, int]], top: int) -> list[Markup]:
        """Labels of columns and rows."""
        parts, labelled, free = [], "", -1
        for square, _, column in cells:
            start = nominal_start(square.key)
            head = f"{start.hour:02}" if self.cadence.unit == "hour" else _MONTHS[start.month - 1]
            is_new = (
                head != labelled and column >= free and (self.cadence.unit != "hour" or start.hour % 3 == 0)
            )
            if is_new and not (
                self.cadence.unit == "hour" and start.date() != nominal_start(cells[0][0].key).date()
            ):
                parts.append(
                    element(
                        "text",
                        text(head),
                        x=self._left + column * _STEP,
                        y=top + 11,
                        class_="chart-tick cal-label",
                    )
                )
                labelled, free = head, column + 2
        if self.cadence.unit == "day":
            for row in (0, 2, 4):
                name = WEEKDAYS[row][:3].capitalize()
                y = top + _TOP + row * _STEP + 10
                parts.append(element("text", text(name), x=0, y=y, class_="chart-tick cal-label"))
        elif self.cadence.unit == "hour":
            for day, row in {nominal_start(q.key).day: row for q, row, _ in cells}.items():
                y = top + _TOP + row * _STEP + 10
                parts.append(element("text", text(f"{day:02}"), x=0, y=y, class_="chart-tick cal-label"))
        return parts


def _square(square: Square, state: str, x: int, y: int) -> Markup:
    """One partition, as a link where it has a page."""
    described = f"{square.key}: {state}" + (f"; {square.label}" if square.label else "")
    parts = [
        element("title", text(described)),
        element("rect", x=x, y=y, width=_SIZE, height=_SIZE, rx=2, class_=f"cal-{square.state}"),
    ]
    if square.is_flagged:
        right = x + _SIZE
        corner = f"M{right - 7} {y}H{right}V{y + 7}Z"
        parts.append(element("path", d=corner, class_="cal-corner"))
    if not square.href:
        return element("g", *parts, data_key=square.key)
    # keyboards reach the same pages by the table's links
    return element("a", *parts, href=square.href, tabindex="-1", data_key=square.key)
