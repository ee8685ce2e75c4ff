"""HTML and SVG elements as text, with every value escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from perennial.core import html


class Markup(str):
    """HTML that is safe to show: template engines such as Jinja2 do not escape it again."""

    __slots__ = ()

    def __html__(self) -> str:
        """The HTML itself: the protocol by which template engines recognise it."""
        return str(self)


def element(tag: str, *children: Markup, **attributes: object) -> Markup:
    """An element with its children.

    Args:
        tag: name of the element.
        children: its content; plain text is passed through `text` first.
        attributes: by name; ``_`` stands for ``-``, a final ``_`` is dropped; None leaves the attribute out.
    """
    pairs = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(_plain(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{pairs}>{''.join(children)}</{tag}>")


def text(value: object, limit: int | None = None) -> Markup:
    """Escaped text, with a dot for each character that cannot be printed."""
    return Markup(html.escape(html.printable(value, limit)))


def join(parts: Iterable[Markup]) -> Markup:
    """Elements one after the other."""
    return Markup("".join(parts))


def table(
    heads: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "", css_class: str = ""
) -> Markup:
    """A table of plain values or elements; the first cell of a row is its heading."""
    top = join(element("th", text(head), scope="col") for head in heads)
    body = join(
        element(
            "tr",
            element("th", _content(row[0]), scope="row"),
            *(element("td", _content(cell)) for cell in row[1:]),
        )
        for row in rows
    )
    title = [element("caption", text(caption))] if caption else []
    head = element("thead", element("tr", top))
    return element("table", *title, head, element("tbody", body), class_=css_class or None)


def _content(cell: object) -> Markup:
    return cell if isinstance(cell, Markup) else text(cell)


def figure(title: str, picture: Markup, legend: Markup, numbers: Markup, css_class: str = "") -> Markup:
    """A picture with its title, its legend, and its numbers in a table that is folded away."""
    return element(
        "figure",
        element("figcaption", element("span", text(title), class_="chart-title"), legend),
        picture,
        element(
            "details",
            element("summary", text("Table")),
            element("div", numbers, class_="chart-table", tabindex=0, role="region", aria_label=title),
        ),
        class_=f"chart {css_class}".strip(),
    )


def picture(
    width: float,
    height: float,
    title: str,
    description: str,
    *content: Markup,
    css_class: str = "",
    is_fixed: bool = False,
    has_links: bool = False,
) -> Markup:
    """An SVG picture that screen readers announce by its title and description.

    Args:
        width: in its own units.
        height: in its own units.
        title: what is shown.
        description: what it says, in words.
        content: elements of the picture.
        css_class: additional classes.
        is_fixed: whether its size is that of its units in pixels; it fills what contains it otherwise.
        has_links: whether parts of it are links, which screen readers do not find within an image.
    """
    return element(
        "svg",
        element("title", text(title)),
        *([element("desc", text(description))] if description else []),
        *content,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_plain(width)} {_plain(height)}",
        width=width if is_fixed else None,
        height=height if is_fixed else None,
        role="group" if has_links else "img",
        aria_label=f"{title}. {description}".rstrip(". ") if description else title,
        class_=f"chart-svg {css_class}".strip(),
    )


def number(value: float | None) -> str:
    """A number for people: four significant digits, thousands with commas."""
    if value is None:
        return "–"
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    shown = f"{value:.4g}"
    return re.sub(r"e([+-])0*(\d+)", r"e\1\2", shown)


def _plain(value: object) -> str:
    """The value of an attribute; coordinates with one decimal."""
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0")
    return html.printable(value)
