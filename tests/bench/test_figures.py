"""The table of figures that `make bench` prints."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bench import workspace
from bench.__main__ import COPIES, QUICK_COPIES, copies_of, show
from bench.figures import Figure


def test_the_table_shows_each_figure_with_its_target() -> None:
    text = io.StringIO()
    figures = [
        Figure("score", "rows", 0.81, "×", 0.75, at_least=True),
        Figure("score", "peak memory", 600, "MiB", 512),
        Figure("loop", "a light task", 0.2, "s"),
    ]
    show(Console(file=text, width=120), figures)
    lines = [line for line in text.getvalue().splitlines() if "score" in line or "loop" in line]
    assert [("met" in line, "missed" in line) for line in lines] == [
        (True, False),
        (False, True),
        (False, False),
    ]
    assert "0.75" in lines[0] and "512" in lines[1]


@pytest.mark.parametrize(
    ("rows", "quick", "copies"),
    [
        (0, False, COPIES),
        (0, True, QUICK_COPIES),
        (1, True, 1),
        (2 * workspace.FLIGHTS, False, 2),
        (100_000_000, False, 297),
    ],
)
def test_the_large_tables_have_at_least_the_requested_rows(rows: int, quick: bool, copies: int) -> None:
    assert copies_of(rows, quick=quick) == copies
