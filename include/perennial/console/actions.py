"""What a person can do to a model from the console, and what the console needs from the program that does it.

The console composes operations, and shows them before they are done. The program that it runs in performs them, with
the permissions of the user. `host.Host.operations` is None where nothing can be done.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from fastapi import Request

#: Stages of a model; each is a DAG.
STAGES = ("data", "train", "score", "monitor", "rollback")
#: Stands in a configuration for the reason, which the user enters last.
REASON = "(the reason)"


class Need(NamedTuple):
    """A permission for the DAG of a stage.

    Attributes:
        right: ``run`` starts it, ``edit`` changes it, ``answer`` answers its questions.
        stage: such as ``score``.
    """

    right: Literal["run", "edit", "answer"]
    stage: str


@dataclass(frozen=True)
class Run:
    """One run of a stage.

    Attributes:
        stage: such as ``score``.
        conf: its configuration.
        partition: its partition key; empty if it has none.
        partitions: that it processes.
    """

    stage: str
    conf: dict[str, Any] = field(default_factory=dict)
    partition: str = ""
    partitions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Backfill:
    """One run of a stage for each partition of a range.

    Attributes:
        stage: such as ``data``.
        start: start of the first partition.
        end: start of the last partition.
        conf: configuration of each run.
        partitions: that they process.
    """

    stage: str
    start: datetime
    end: datetime
    conf: dict[str, Any] = field(default_factory=dict)
    partitions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """The answer to a question of a run.

    Attributes:
        question: that is answered.
    """

    question: Question


@dataclass(frozen=True)
class Pause:
    """Whether new runs of a stage start by themselves.

    Attributes:
        stage: such as ``score``.
        is_paused: whether it is paused now.
    """

    stage: str
    is_paused: bool


@dataclass(frozen=True)
class MuteSignal:
    """A signal of which no alerts are sent for a while.

    Attributes:
        signal: or a pattern of signals.
        until: last date that is muted.
    """

    signal: str
    until: str


Operation = Run | Backfill | Answer | Pause | MuteSignal


@dataclass(frozen=True)
class Question:
    """A question of a run that waits for a person.

    Attributes:
        stage: of the run.
        run_id: id of the run.
        task_id: task that waits.
        subject: the question.
        body: what speaks for it, in Markdown.
        options: the possible answers.
        partition: key of the run's partition; empty if it has none.
        map_index: of the task; -1 if it is not mapped.
    """

    stage: str
    run_id: str
    task_id: str
    subject: str
    body: str
    options: list[str]
    partition: str = ""
    map_index: int = -1


@dataclass(frozen=True)
class RunDetails:
    """A run, as its page shows it.

    Attributes:
        dag_id: its DAG.
        run_id: its id.
        state: such as ``running``.
        partition: its partition key; empty if it has none.
        conf: its configuration.
        note: of the user who started it.
        user: who started it; empty if nobody did.
        queued_at: when it was queued (UTC).
        started_at: when it began (UTC); empty before.
        ended_at: when it ended (UTC); empty before.
        url: its page outside the console.
    """

    dag_id: str
    run_id: str
    state: str
    partition: str
    conf: dict[str, Any]
    note: str
    user: str
    queued_at: str
    started_at: str
    ended_at: str
    url: str


class Operations(Protocol):
    """What the program that the console runs in does for a user."""

    def may(self, user: Any, model: str, needs: Collection[Need]) -> set[Need]:
        """The permissions of the user among those that are needed."""

    def name_of(self, user: Any) -> str:
        """Name of a user, for the ledger."""

    def credential(self, request: Request) -> str:
        """What identifies the user's session, which no other site knows."""

    async def questions(self, request: Request, model: str) -> list[Question]:
        """The questions about a model that wait for a person."""

    async def paused(self, request: Request, model: str) -> Mapping[str, bool]:
        """Whether the DAG of each stage is paused."""

    async def run(self, request: Request, dag_id: str, run_id: str) -> RunDetails | None:
        """A run; None if there is no such run."""

    async def perform(
        self, request: Request, model: str, operation: Operation, *, reason: str, choice: str
    ) -> str:
        """Do something in the name of the user.

        Args:
            request: of the user.
            model: name of the model.
            operation: what to do; muting is the console's own.
            reason: why.
            choice: the button that was pressed.

        Returns:
            Path in the console of the page that shows it.

        Raises:
            RefusedError: it is not allowed, or not possible.
        """


class RefusedError(Exception):
    """The program that the console runs in refuses an operation.

    Args:
        status_code: HTTP status of the refusal.
        detail: why.
    """

    def __init__(self, status_code: int, detail: str) -> None:
        super().__init__(detail)
        self.status_code, self.detail = status_code, detail
