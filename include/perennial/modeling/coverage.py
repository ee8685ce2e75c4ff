"""How many of how many rows a metric rests on, and why the others are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

#: Why a row is left out, or counts as wrong.
NO_LABEL = "without a label"
NOT_DUE = "whose label is not due yet"
NOT_SAMPLED = "not in the sample"
ONE_GRADE = "in a list whose rows all have the same grade"
UNSEEN_CLASS = "of a class unseen at training"


class CoverageResult(TypedDict):
    """A `Coverage` as JSON."""

    evaluated: int
    rows: int
    omitted: dict[str, int]
    counted_wrong: dict[str, int]


@dataclass(frozen=True)
class Coverage:
    """How many of how many rows a metric rests on.

    Attributes:
        evaluated: number of rows that it rests on.
        rows: number of rows that it is about.
        omitted: number of the other rows, by the reason why they are left out.
        counted_wrong: number of evaluated rows that count as wrong whatever is predicted, by the reason.
    """

    evaluated: int
    rows: int
    omitted: Mapping[str, int] = field(default_factory=dict)
    counted_wrong: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{count:,} {reason}" for reason, count in self.omitted.items() if count]
        left_out = f" ({', '.join(parts)})" if parts else ""
        wrong = [f"{count:,} {reason}" for reason, count in self.counted_wrong.items() if count]
        counted = f"; {', '.join(wrong)} count as wrong" if wrong else ""
        return f"{self.evaluated:,} of {self.rows:,} rows{left_out}{counted}"

    def as_dict(self) -> CoverageResult:
        """The coverage as JSON, without reasons that no row has."""
        return {
            "evaluated": self.evaluated,
            "rows": self.rows,
            "omitted": {reason: count for reason, count in self.omitted.items() if count},
            "counted_wrong": {reason: count for reason, count in self.counted_wrong.items() if count},
        }
