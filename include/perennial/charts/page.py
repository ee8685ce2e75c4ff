"""The frame of pages for people: heading, state, sections. One look for reports, data docs and lists of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from perennial.charts.markup import Markup, element, join, text
from perennial.charts.stylesheet import stylesheet

#: States that are coloured; others are grey.
_TONES = {
    "ok": "ok", "stable": "ok", "passed": "ok", "published": "ok", "suspected": "suspected", "running": "suspected",
    "bad": "bad", "drifted": "bad", "dropped": "bad", "failed": "bad", "rejected": "bad", "stopped": "bad",
}  # fmt: skip


@cache
def page_style() -> str:
    """CSS of pages, that of charts included."""
    return stylesheet() + Path(__file__).with_name("page.css").read_text("utf-8")


def tag(state: object) -> Markup:
    """A state as a coloured label."""
    return element("span", text(state), class_=f"tag tag-{_TONES.get(str(state), 'none')}")


def facts(pairs: Iterable[tuple[str, object]]) -> Markup:
    """A list of names and values, without those that have none."""
    rows = [
        join((element("dt", text(name)), element("dd", value if isinstance(value, Markup) else text(value))))
        for name, value in pairs
        if value not in (None, "")
    ]
    return element("dl", *rows, class_="facts")


def charts(figures: Sequence[Markup]) -> Markup:
    """Figures side by side, as many as fit."""
    return element("div", *figures, class_="charts") if figures else Markup("")


def section(heading: str, *content: Markup) -> Markup:
    """A section of a page."""
    return element("section", element("h2", text(heading)), *content)


def document(title: str, *content: Markup) -> str:
    """A whole page, without scripts and without anything from elsewhere.

    Args:
        title: its title.
        content: what is shown, the heading included.
    """
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{text(title)}</title>'
        f'<style>{page_style()}</style></head><body class="page"><main class="perennial">{join(content)}</main>'
        "</body></html>"
    )


def embed(document: str, title: str, content: str) -> str:
    """Put a title and content of ours before what another library drew, whose ground is light only.

    Args:
        document: the library's page.
        title: of the page.
        content: HTML.
    """
    head, body, rest = document.partition("<body>")
    head = head.replace("<html", '<html data-theme="light"', 1)
    head = head.replace("<head>", f"<head><title>{text(title)}</title>", 1)
    return f'{head}{body}<style>{page_style()}</style><main class="perennial">{content}</main>{rest}'
