"""A model's specification, ``model.yaml``: its sections together, and what must hold across them.

Light on purpose: DAG files load every spec at parse time, so nothing but pydantic and PyYAML is imported here.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from perennial.spec.alerts import AlertsSpec
from perennial.spec.constraints import GATE_METRICS, HOLDOUT_METRICS, MIN_BOOTSTRAP_DAYS, OBJECTIVES
from perennial.spec.policies import GateSpec, MonitoringSpec, RetrainingSpec
from perennial.spec.sections import (
    Column,
    DataSpec,
    FeatureSet,
    FeaturesSpec,
    LabelSpec,
    Name,
    ReferenceTable,
    ScheduleSpec,
    Step,
    StepLimits,
    StrictModel,
    Task,
    TrainingSpec,
)

__all__ = [
    "GATE_METRICS",
    "FeatureSet",
    "ModelSpec",
    "MonitoringSpec",
    "ReferenceTable",
    "StepLimits",
    "json_schema",
]

_DECIDES_NOTHING: Any = {
    "compute": True,
    "limits": True,
    "alerts": True,
    "data": {"arrival", "arrival_hours"},
}


class ModelSpec(StrictModel):
    """``model.yaml``: everything that is said about one model."""

    name: Name = Field(
        description="The folder's name; DAGs, tables and the registered model are called by it."
    )
    task: Task = Field(description="What kind of label is predicted.")
    owner: str = Field(min_length=1, max_length=100, description="Who answers for it; shown on its DAGs.")
    description: str = Field(
        min_length=1, max_length=1000, description="What it predicts, and when it is asked."
    )
    tags: list[Name] = Field([], description="Tags of its DAGs.")
    group: Column | None = Field(
        None, description="Ranking only: the column that names the list a row belongs to."
    )
    data: DataSpec = Field(description="Where partitions come from and what they hold.")
    label: LabelSpec = Field(description="What is predicted, and when it becomes known.")
    features: FeaturesSpec = Field(FeaturesSpec(), description="What features.sql is built upon.")
    training: TrainingSpec = Field(TrainingSpec(), description="How a challenger is made.")
    gate: GateSpec = Field(GateSpec(), description="What a challenger must show before it becomes champion.")
    monitoring: MonitoringSpec = Field(MonitoringSpec(), description="When a model counts as drifted.")
    retraining: RetrainingSpec = Field(RetrainingSpec(), description="When a verdict leads to a retraining.")
    schedule: ScheduleSpec = Field(description="When DAGs run by themselves (UTC), and for which partitions.")
    compute: dict[Step, Name] = Field(
        {}, description="Compute profile a step; PERENNIAL_PROFILE, or local, when not given."
    )
    limits: dict[Step, StepLimits] = Field({}, description="Retries and timeout of a step's task.")
    alerts: AlertsSpec = Field(
        AlertsSpec(), description="Who is told when a signal turns bad, and when it is well again."
    )
    _folder: Path = Path()
    _sql: str = ""
    _suite: str = ""
    _sets: tuple[FeatureSet, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder the spec was read from."""
        return self._folder

    @property
    def sql(self) -> str:
        """The text of ``features.sql``."""
        return self._sql

    @property
    def suite(self) -> str:
        """The text of ``expectations.json``."""
        return self._suite

    @property
    def feature_sets(self) -> tuple[FeatureSet, ...]:
        """The feature sets named by ``features.sets``, in order."""
        return self._sets

    @property
    def references(self) -> list[ReferenceTable]:
        """All reference tables: those of the feature sets, then the model's own."""
        return [r for s in self._sets for r in s.references] + self.features.references

    @property
    def metric(self) -> str:
        """The gate's loss."""
        return self.gate.metric or GATE_METRICS[self.task][0]

    @property
    def objective(self) -> str:
        """XGBoost's objective."""
        return self.training.objective or OBJECTIVES[self.task][0]

    @property
    def digest(self) -> str:
        """SHA-256 of everything in the folder that decides a result: spec, SQL, suite, feature sets.

        Where a step runs, how often it is tried, how long a partition is waited for and who is told decide none.
        """
        parts = [self.model_dump_json(exclude=_DECIDES_NOTHING), self._sql, self._suite]
        parts += [text for s in self._sets for text in (s.model_dump_json(), s.sql)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def bundle(self) -> dict[str, Any]:
        """The folder as one JSON-able value: what a pod is handed, and what a registered version was trained from."""
        return {
            "model": self.model_dump(mode="json"),
            "sql": self._sql,
            "suite": self._suite,
            "sets": [{"set": s.model_dump(mode="json"), "sql": s.sql} for s in self._sets],
        }

    @classmethod
    def from_bundle(cls, bundle: dict[str, Any]) -> ModelSpec:
        """The spec that `bundle` was made of."""
        spec = cls.model_validate(bundle["model"])
        spec._sql, spec._suite = bundle["sql"], bundle["suite"]
        sets = [(FeatureSet.model_validate(item["set"]), item["sql"]) for item in bundle["sets"]]
        for found, sql in sets:
            found._sql = sql
        spec._sets = tuple(found for found, _ in sets)
        return spec

    def step_limits(self, step: str) -> StepLimits:
        """Retries and timeout of a stage."""
        return self.limits.get(step, StepLimits())  # type: ignore[call-overload, no-any-return]

    @model_validator(mode="after")
    def _across(self) -> Self:
        for key, value, table in (
            ("gate.metric", self.gate.metric, GATE_METRICS),
            ("training.objective", self.training.objective, OBJECTIVES),
        ):
            if value is not None and value not in table[self.task]:
                raise ValueError(
                    f"{key} is {value!r}; for task {self.task} it is one of {', '.join(table[self.task])}"
                )
        if unknown := [m for m in self.gate.bounds if m not in HOLDOUT_METRICS[self.task]]:
            raise ValueError(f"gate.bounds names {unknown[0]!r}; for task {self.task} it is one of "
                             f"{', '.join(HOLDOUT_METRICS[self.task])}")  # fmt: skip
        if self.gate.bootstrap_unit == "days" and (
            self.task == "ranking" or self.training.holdout_days < MIN_BOOTSTRAP_DAYS
        ):
            raise ValueError(
                f"gate.bootstrap_unit is 'days': that needs training.holdout_days of {MIN_BOOTSTRAP_DAYS} or more (it is "
                f"{self.training.holdout_days}), and another task than ranking (it is {self.task})"
            )
        if (self.task == "ranking") != (self.group is not None):
            raise ValueError(
                "group names the list a row belongs to: needed for task ranking, and for no other"
            )
        if self.group is not None and self.group not in self.data.columns:
            raise ValueError(f"group names {self.group!r}, which is not in data.columns")
        for key in ("slices", "fairness"):
            for column in getattr(self.monitoring, key):
                if column not in self.data.columns:
                    raise ValueError(f"monitoring.{key} names {column!r}, which is not in data.columns")
                if column in self.data.personal:
                    raise ValueError(
                        f"monitoring.{key} names {column!r}, which data.personal names too: its values would stand in "
                        "reports; group by a column that names no person"
                    )
        if self.label.source is not None:
            if missing := [k for k in self.data.key if k not in self.label.columns]:
                raise ValueError(
                    f"label.columns lacks the key column {missing[0]!r}: labels could not be joined"
                )
            for key in self.data.key:
                if self.label.columns[key] != self.data.columns[key]:
                    raise ValueError(f"label.columns.{key} is {self.label.columns[key]}; in data.columns it is "
                                     f"{self.data.columns[key]}, and labels are joined by it")  # fmt: skip
        elif self.label.expression not in self.data.columns:
            raise ValueError(
                f"label.expression is {self.label.expression!r}: without label.source it names one of "
                "data.columns, which features then do not see"
            )
        elif self.label.columns or self.label.arrives_after_days:
            raise ValueError(
                "label.columns and label.arrives_after_days need label.source: the label's own feed"
            )
        elif self.label.expression in (*self.data.key, self.data.event_time, self.group):
            raise ValueError(
                f"label.expression is {self.label.expression!r}, which names the row, its time or its list: features "
                "could not see that column"
            )
        return self


def json_schema() -> dict[str, Any]:
    """The JSON Schema of ``model.yaml``, for editors."""
    return ModelSpec.model_json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema"}
