"""The terminal: the console, tables without borders, and the user's name."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Collection

from rich.console import Console
from rich.table import Table

__all__ = ["console", "table", "user"]


def console() -> Console:
    """The console that commands print to. In a file or a pipe, which have no width, lines are not wrapped."""
    return (
        Console(highlight=False)
        if sys.stdout.isatty()
        else Console(highlight=False, width=250, soft_wrap=True)
    )


def table(*titles: str, right: Collection[str] = ()) -> Table:
    """An empty table without borders.

    Args:
        titles: titles of the columns.
        right: titles of the columns that are aligned to the right.
    """
    result = Table(box=None, pad_edge=False)
    for title in titles:
        result.add_column(title, justify="right" if title in right else "left", overflow="fold")
    return result


def user() -> str:
    """The user who runs the command, as the ledger records it."""
    try:
        return f"{getpass.getuser()} (command line)"
    except (KeyError, OSError):  # a container's user need not have a name
        return f"user {os.getuid()} (command line)"
