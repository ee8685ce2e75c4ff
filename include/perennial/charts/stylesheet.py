"""The look of charts: colours, lines, legends; light and dark."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def stylesheet() -> str:
    """CSS for a page's ``<style>`` element, or for a file that it links."""
    return Path(__file__).with_name("charts.css").read_text("utf-8")


def standalone(picture: str) -> str:
    """A picture as an SVG file of its own: with the look, on a light ground, as viewers of images show it.

    Args:
        picture: the chart's ``svg``.
    """
    head, _, rest = picture.partition(">")
    look = f'<style>{stylesheet()}</style><rect width="100%" height="100%" class="chart-ground" />'
    return f'{head} data-theme="light" font-family="system-ui, sans-serif">{look}{rest}'
