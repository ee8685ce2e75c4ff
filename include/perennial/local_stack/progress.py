"""Progress, one line for each subject: updated in place on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.text import Text


class ProgressDisplay:
    """A context manager that shows the progress of several subjects; thread-safe."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._began = time.monotonic()
        self._lines: dict[str, tuple[str, bool]] = {}
        self._lock = threading.Lock()
        self._spinner = Spinner("dots")
        self._live = Live(
            console=self.console, get_renderable=self._render, refresh_per_second=8, transient=True
        )

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.console.is_terminal:
            self._live.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the display was created."""
        return time.monotonic() - self._began

    def working(self, subject: str, text: str, *, milestone: bool = False) -> None:
        """Show what a subject is doing. Off a terminal, only milestones are printed."""
        self._set(subject, text, False, milestone)

    def done(self, subject: str, text: str) -> None:
        """Show that a subject is finished, and its outcome."""
        self._set(subject, text, True, True)

    def note(self, text: str) -> None:
        """Print a permanent line."""
        self.console.print(f"{self.seconds:5.0f} s  {text}", markup=False, soft_wrap=True)

    def _set(self, subject: str, text: str, done: bool, milestone: bool) -> None:
        with self._lock:
            before = self._lines.get(subject)
            self._lines[subject] = (text, done)
        if before == (text, done):
            return
        if not self.console.is_terminal:
            if milestone:
                self.console.print(f"{self.seconds:5.0f} s  {subject}: {text}", markup=False, soft_wrap=True)
        elif done:
            self.console.print(
                f"[dim]{self.seconds:5.0f} s[/dim]  [green]✓[/green] {subject}: {escape(text)}",
                soft_wrap=True,
            )

    def _render(self) -> RenderableType:
        with self._lock:
            lines = [(subject, text) for subject, (text, done) in self._lines.items() if not done]
        rows: list[RenderableType] = []
        for subject, text in lines:
            spin = self._spinner.render(self.console.get_time())
            mark = spin if isinstance(spin, Text) else Text("…")
            rows.append(Text.assemble(f"{self.seconds:5.0f} s  ", mark, f" {subject}: {text}"))
        return Group(*rows)
