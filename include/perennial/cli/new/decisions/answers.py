"""Answers that were given as options."""

from __future__ import annotations

from dataclasses import dataclass, field

from perennial.cli.new.samples.choices import ReadingChoices
from perennial.core.partitions import Unit

__all__ = ["GivenAnswers"]


@dataclass
class GivenAnswers:
    """Answers that were given as options; None, or empty, if not.

    Attributes:
        task: the task.
        label: column to predict.
        positive: binary: value of the positive class.
        key: columns of the key; ``[row number]`` is no column, but the number of a row.
        event_time: column with the time of the event, or ``none``.
        group: ranking: column of the list.
        owner: who is responsible.
        description: what is predicted.
        personal: columns of personal data; an empty list: none.
        land: whether to copy the sample into the landing area.
        partition_by: column by whose values the rows are divided into partitions, if they have no dates.
        at_random: whether they are divided at random.
        partitions: number of partitions of rows without dates.
        every: length of a partition.
        timezone: IANA name of the zone whose days partitions are.
        reading: how the sample's text is read where it leaves that open.
    """

    task: str | None = None
    label: str | None = None
    positive: str | None = None
    key: list[str] = field(default_factory=list)
    event_time: str | None = None
    group: str | None = None
    owner: str | None = None
    description: str | None = None
    personal: list[str] | None = None
    land: bool | None = None
    partition_by: str | None = None
    at_random: bool = False
    partitions: int | None = None
    every: Unit | None = None
    timezone: str | None = None
    reading: ReadingChoices = field(default_factory=ReadingChoices)
