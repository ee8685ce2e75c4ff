"""What the console needs from the program that it runs in: who asks, what they may see, what runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from perennial.console.actions import Operations


@dataclass(frozen=True)
class RunningWork:
    """A run that is queued or running.

    Attributes:
        stage: such as ``data`` or ``train``.
        state: ``queued`` or ``running``.
        partition: that it processes; empty if it has none.
        url: its page; empty if there is none.
    """

    stage: str
    state: str
    partition: str = ""
    url: str = ""


@dataclass(frozen=True)
class Link:
    """A page outside the console.

    Attributes:
        text: what it is.
        url: its address.
    """

    text: str
    url: str


class Host(Protocol):
    """The program that the console runs in."""

    @property
    def name(self) -> str:
        """Shown in the page's head."""

    @property
    def user(self) -> Callable[..., Any]:
        """FastAPI's dependency that gives the user, or refuses the request."""

    @property
    def operations(self) -> Operations | None:
        """What users can do; None where pages only read."""

    def visible(self, user: Any, models: Collection[str]) -> set[str]:
        """Those of the models that the user may see."""

    def running(self, models: Collection[str]) -> Mapping[str, list[RunningWork]]:
        """What is queued or running now, by model."""

    def links(self, model: str) -> list[Link]:
        """Pages about a model outside the console."""

    def login_url(self, path: str) -> str:
        """Where somebody logs in who then comes back to a path of the console; empty if there is no such page."""


class LocalHost:
    """One's own machine: whoever can open the page may read the lake's files as well."""

    name = "local, read-only"
    operations = None

    @staticmethod
    def user() -> None:
        """Nobody has to log in."""

    def visible(self, user: Any, models: Collection[str]) -> set[str]:
        """All of them."""
        return set(models)

    def running(self, models: Collection[str]) -> Mapping[str, list[RunningWork]]:
        """Nothing: only Airflow knows."""
        return {}

    def links(self, model: str) -> list[Link]:
        """None."""
        return []

    def login_url(self, path: str) -> str:
        """Nobody has to log in."""
        return ""
