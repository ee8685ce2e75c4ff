"""What is going on is shown in place on a terminal, and as plain lines elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from perennial.local_stack.progress import ProgressDisplay


def show(terminal: bool) -> str:
    out = io.StringIO()
    with ProgressDisplay(Console(file=out, width=60, force_terminal=terminal)) as board:
        board.working("flight_late", "night 2013-04-01")
        board.working("flight_late", "training [a model]", milestone=True)
        board.working("flight_late", "training [a model]", milestone=True)
        board.done("flight_late", "version 1, " + "a long reason " * 10)
        board.note("a task will be tried again")
    return out.getvalue()


def test_lines_are_milestones_only_each_once_and_unbroken() -> None:
    lines = show(terminal=False).splitlines()
    assert len(lines) == 3
    assert "training [a model]" in lines[0]
    assert lines[1].rstrip().endswith("a long reason") and "tried again" in lines[2]
    assert "\x1b" not in "".join(lines)


def test_a_terminal_keeps_what_is_done() -> None:
    shown = show(terminal=True)
    assert "✓" in shown and "a long reason" in shown
