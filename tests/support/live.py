"""The stack that the live tests share, as their fixtures give it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from perennial.sample.plan import Plan
from perennial.spec import ModelSpec
from perennial.stack.board import Board
from perennial.stack.config import Stack
from perennial.stack.rest import Airflow
from support import toys

BROKEN = "broken_on_purpose"
#: Twelve days of history, eight nights.
PLAN = Plan("toy_live", toys.FIRST, "2024-01-12", "2024-01-20", False)


@dataclass(frozen=True)
class Live:
    """A running stack.

    Attributes:
        user: what the processes take for the user's home folder.
        log: what the board has shown so far goes there.
    """

    config: Stack
    airflow: Airflow
    spec: ModelSpec
    user: Path
    log: Path

    def board(self) -> Board:
        """A board that appends to `log`."""
        return Board(Console(file=self.log.open("a"), width=200))
