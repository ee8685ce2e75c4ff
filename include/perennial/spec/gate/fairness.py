"""``gate.fairness``: the largest gaps between groups of rows with which a challenger passes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from perennial.spec.constraints import FAIRNESS_METRICS, MIN_GROUP_ROWS, UNBOUNDED_RATIOS
from perennial.spec.strict_model import Column, StrictModel

__all__ = ["FairnessBound", "FairnessGate"]


def _columns(value: object) -> object:
    """A column alone is a combination of one."""
    return [value] if isinstance(value, str) else value


def _as_text(value: object) -> object:
    """A value of a column as text, as Arrow writes it: YAML reads ``true`` and ``1`` as something else."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else value


#: Columns whose values form groups, in all combinations.
GroupColumns = Annotated[
    list[Column],
    Field(min_length=1, max_length=4),
    BeforeValidator(_columns, json_schema_input_type=Column | list[Column]),
]
_Value = Annotated[str, BeforeValidator(_as_text, json_schema_input_type=str | int | bool)]


class FairnessBound(StrictModel):
    """How far groups may be apart in a metric."""

    max_difference: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None, description="Largest allowed difference between the highest and the lowest group."
    )
    min_ratio: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Smallest allowed ratio of the lowest group to the highest, such as 0.8."
    )

    @model_validator(mode="after")
    def _check_given(self) -> Self:
        if self.max_difference is None and self.min_ratio is None:
            raise ValueError("give max_difference, min_ratio, or both")
        return self


class FairnessGate(StrictModel):
    """How far apart groups of the held-out rows may be in what a challenger predicts for them, and in its errors."""

    groups: list[GroupColumns] = Field(
        min_length=1,
        max_length=20,
        description="Columns of the rows by whose values groups are formed; a list of columns forms a group of each "
        "combination of their values. They need not be features.",
    )
    values: dict[Column, Annotated[list[_Value], Field(min_length=1, max_length=100)]] = Field(
        {},
        description="Values of a column that form groups; all by default. A column of personal data needs them (or "
        "edges): no report names any other value of it.",
    )
    edges: dict[Column, Annotated[list[float], Field(min_length=1, max_length=20)]] = Field(
        {},
        description="Numbers in ascending order that divide a column of numbers into groups, such as [25, 45, 65].",
    )
    bounds: dict[str, FairnessBound] = Field(
        min_length=1,
        description="How far groups may be apart, by the metric's name: "
        "`{demographic_parity: {max_difference: 0.1, min_ratio: 0.8}}`.",
    )
    threshold: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Task binary: probability from which a row counts as predicted positive.",
    )
    min_rows: int = Field(
        200,
        ge=MIN_GROUP_ROWS,
        description="Rows with which a group is judged, of those that count for the metric: of positive label for "
        "equal_opportunity. Groups with fewer are counted and not named. If fewer than two groups have as many, the "
        "challenger is refused.",
    )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of all groups, each once."""
        return tuple(dict.fromkeys(column for combination in self.groups for column in combination))

    def check(
        self, task: str, declared: Mapping[str, str], personal: Collection[str], label: str | None
    ) -> None:
        """Compare the section with the rest of the spec.

        Args:
            task: of the model.
            declared: type of each column of the rows.
            personal: columns of personal data.
            label: column of the rows that is the label; None if labels have a feed of their own.

        Raises:
            ValueError: it does not fit.
        """
        if task not in FAIRNESS_METRICS:
            raise ValueError(
                f"gate.fairness is not defined for task {task}: the scores of a list have a meaning within it only, so "
                "groups cannot be compared by them; remove it, and use gate.slices to compare the loss of each group"
            )
        if task != "binary" and self.threshold != type(self).model_fields["threshold"].default:
            raise ValueError(
                f"gate.fairness.threshold is {self.threshold:g}, and task {task} predicts no probability that it would "
                "divide: remove it"
            )
        self._check_bounds(task)
        for column in self.columns:
            if column not in declared:
                raise ValueError(f"gate.fairness.groups names {column!r}, which is not in data.columns")
            if column == label:
                raise ValueError(
                    f"gate.fairness.groups names {column!r}, the label: groups are of what is known otherwise"
                )
            if column in personal and column not in self.values and column not in self.edges:
                raise ValueError(
                    f"gate.fairness.groups names {column!r}, which is personal data, and reports name groups: list "
                    f"the values that may be named in gate.fairness.values.{column}, or divide its numbers by "
                    f"gate.fairness.edges.{column}"
                )
        for key, columns in (("values", self.values), ("edges", self.edges)):
            if unknown := [c for c in columns if c not in self.columns]:
                raise ValueError(
                    f"gate.fairness.{key} names {unknown[0]!r}, which is not in gate.fairness.groups"
                )
        for column, edges in self.edges.items():
            if declared[column] not in ("integer", "number"):
                raise ValueError(
                    f"gate.fairness.edges divides {column!r}, which is a {declared[column]}: only numbers have edges"
                )
            if column in self.values:
                raise ValueError(f"gate.fairness has values and edges of {column!r}: give one of them")
            if any(low >= high for low, high in pairwise(edges)):
                raise ValueError(f"gate.fairness.edges.{column} is not in ascending order: {edges}")

    def _check_bounds(self, task: str) -> None:
        """Refuse bounds of a metric that the task does not have, or that has no such bound."""
        if unknown := [m for m in self.bounds if m not in FAIRNESS_METRICS[task]]:
            raise ValueError(
                f"gate.fairness.bounds names {unknown[0]!r}; for task {task} it is one of "
                f"{', '.join(FAIRNESS_METRICS[task])}"
            )
        for metric, bound in self.bounds.items():
            if bound.min_ratio is not None and metric in UNBOUNDED_RATIOS.get(task, ()):
                raise ValueError(
                    f"gate.fairness.bounds.{metric} has min_ratio, but for task {task} its values can be negative or "
                    "0, of which a ratio says nothing: use max_difference"
                )

    @model_validator(mode="before")
    @classmethod
    def _check_combinations(cls, value: Any) -> Any:
        groups = value.get("groups") if isinstance(value, dict) else None
        for combination in groups if isinstance(groups, list) else ():
            if isinstance(combination, list) and len({str(c) for c in combination}) < len(combination):
                raise ValueError(f"groups combines a column with itself: {combination}")
        return value
