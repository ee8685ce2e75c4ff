"""What the commands know of whoever runs them: a terminal, and a name."""

from __future__ import annotations

import os
import sys

from rich.console import Console


def console() -> Console:
    """Where commands print. A file or a pipe has no width: lines stay whole there."""
    return (
        Console(highlight=False)
        if sys.stdout.isatty()
        else Console(highlight=False, width=250, soft_wrap=True)
    )


def user() -> str:
    """Who runs the command, for the ledger."""
    import getpass

    try:
        return f"{getpass.getuser()} (command line)"
    except (KeyError, OSError):  # a container's user need not have a name
        return f"user {os.getuid()} (command line)"
