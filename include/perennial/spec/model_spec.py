"""A model's specification, ``model.yaml``: all its sections, and the rules across sections.

DAG files load every spec when Airflow parses them, so no heavy libraries are imported here.
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

#: Keys that do not influence results, and are not part of a spec's digest.
_NOT_IN_DIGEST: Any = {
    "compute": True,
    "limits": True,
    "alerts": True,
    "data": {"arrival", "arrival_hours"},
}


class ModelSpec(StrictModel):
    """The content of ``model.yaml``: everything about one model."""

    name: Name = Field(
        description="Name of the folder, and part of the names of DAGs, tables and the registered model."
    )
    task: Task = Field(description="Kind of prediction.")
    owner: str = Field(
        min_length=1, max_length=100, description="Who is responsible for it; shown on its DAGs."
    )
    description: str = Field(
        min_length=1, max_length=1000, description="What it predicts, and when a prediction is made."
    )
    tags: list[Name] = Field([], description="Tags of its DAGs.")
    group: Column | None = Field(
        None, description="Ranking only: column that identifies the list a row belongs to."
    )
    data: DataSpec = Field(description="The rows: where partitions come from, and what they contain.")
    label: LabelSpec = Field(description="The label: what is predicted, and when it becomes known.")
    features: FeaturesSpec = Field(FeaturesSpec(), description="Inputs of features.sql.")
    training: TrainingSpec = Field(TrainingSpec(), description="How a challenger is trained.")
    gate: GateSpec = Field(GateSpec(), description="What a challenger must show before it becomes champion.")
    monitoring: MonitoringSpec = Field(
        MonitoringSpec(), description="When a model counts as drifted, and when a signal is bad."
    )
    retraining: RetrainingSpec = Field(RetrainingSpec(), description="When a verdict leads to a retraining.")
    schedule: ScheduleSpec = Field(description="When DAGs run (UTC), and for which partitions.")
    compute: dict[Step, Name] = Field(
        {}, description="Compute profile of a step; by default PERENNIAL_PROFILE, or local."
    )
    limits: dict[Step, StepLimits] = Field({}, description="Retries and timeouts of a step's tasks.")
    alerts: AlertsSpec = Field(
        AlertsSpec(), description="Where to send a message when a signal turns bad, and when it recovers."
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
        """All reference tables: those of the feature sets, then those of the model."""
        return [r for s in self._sets for r in s.references] + self.features.references

    @property
    def metric(self) -> str:
        """The loss that the gate compares."""
        return self.gate.metric or GATE_METRICS[self.task][0]

    @property
    def objective(self) -> str:
        """The XGBoost objective."""
        return self.training.objective or OBJECTIVES[self.task][0]

    @property
    def digest(self) -> str:
        """SHA-256 of everything in the folder that influences a result: spec, SQL, suite, feature sets.

        Compute profiles, retries, timeouts, waiting for a partition, and alerts do not influence results.
        """
        parts = [self.model_dump_json(exclude=_NOT_IN_DIGEST), self._sql, self._suite]
        parts += [text for s in self._sets for text in (s.model_dump_json(), s.sql)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def bundle(self) -> dict[str, Any]:
        """The folder as one JSON-serialisable value, for a pod and for a registered version."""
        return {
            "model": self.model_dump(mode="json"),
            "sql": self._sql,
            "suite": self._suite,
            "sets": [{"set": s.model_dump(mode="json"), "sql": s.sql} for s in self._sets],
        }

    @classmethod
    def from_bundle(cls, bundle: dict[str, Any]) -> ModelSpec:
        """Restore the spec from a `bundle`.

        Raises:
            ValueError, KeyError, TypeError: it is not a bundle of this version of the library.
        """
        spec = cls.model_validate(bundle["model"])
        spec._sql, spec._suite = bundle["sql"], bundle["suite"]
        sets = [(FeatureSet.model_validate(item["set"]), item["sql"]) for item in bundle["sets"]]
        for feature_set, sql in sets:
            feature_set._sql = sql
        spec._sets = tuple(feature_set for feature_set, _ in sets)
        return spec

    def step_limits(self, step: str) -> StepLimits:
        """Retries and timeouts of a step's tasks."""
        return self.limits.get(step, StepLimits())  # type: ignore[call-overload, no-any-return]

    @model_validator(mode="after")
    def _check_task(self) -> Self:
        for key, value, table in (
            ("gate.metric", self.gate.metric, GATE_METRICS),
            ("training.objective", self.training.objective, OBJECTIVES),
        ):
            if value is not None and value not in table[self.task]:
                raise ValueError(
                    f"{key} is {value!r}; for task {self.task} it is one of {', '.join(table[self.task])}"
                )
        if unknown := [m for m in self.gate.bounds if m not in HOLDOUT_METRICS[self.task]]:
            raise ValueError(
                f"gate.bounds names {unknown[0]!r}; for task {self.task} it is one of "
                f"{', '.join(HOLDOUT_METRICS[self.task])}"
            )
        few_days = self.training.holdout_days < MIN_BOOTSTRAP_DAYS
        if self.gate.bootstrap_unit == "days" and (self.task == "ranking" or few_days):
            raise ValueError(
                f"gate.bootstrap_unit is 'days': that needs training.holdout_days of {MIN_BOOTSTRAP_DAYS} or more "
                f"(it is {self.training.holdout_days}), and another task than ranking (it is {self.task})"
            )
        return self

    @model_validator(mode="after")
    def _check_group_columns(self) -> Self:
        if (self.task == "ranking") != (self.group is not None):
            raise ValueError("group, the column that identifies a list, is needed for task ranking only")
        if self.group is not None and self.group not in self.data.columns:
            raise ValueError(f"group names {self.group!r}, which is not in data.columns")
        for key in ("slices", "fairness"):
            for column in getattr(self.monitoring, key):
                if column not in self.data.columns:
                    raise ValueError(f"monitoring.{key} names {column!r}, which is not in data.columns")
                if column in self.data.personal:
                    raise ValueError(
                        f"monitoring.{key} names {column!r}, which is personal data (data.personal): its values would "
                        "appear in reports; choose a column that does not identify a person"
                    )
        return self

    @model_validator(mode="after")
    def _check_label(self) -> Self:
        label = self.label
        if label.source is not None:
            if missing := [k for k in self.data.key if k not in label.columns]:
                raise ValueError(
                    f"label.columns lacks the key column {missing[0]!r}: labels could not be joined"
                )
            for key in self.data.key:
                if label.columns[key] != self.data.columns[key]:
                    raise ValueError(
                        f"label.columns.{key} is {label.columns[key]}; in data.columns it is "
                        f"{self.data.columns[key]}, and labels are joined by it"
                    )
        elif label.expression not in self.data.columns:
            raise ValueError(
                f"label.expression is {label.expression!r}: without label.source it names one of data.columns, which "
                "is then hidden from features"
            )
        elif label.columns or label.arrives_after_days:
            raise ValueError("label.columns and label.arrives_after_days need label.source, the label feed")
        elif label.expression in (*self.data.key, self.data.event_time, self.group):
            raise ValueError(
                f"label.expression is {label.expression!r}, a key column, the event time or the group: the label is "
                "hidden from features, and these columns must not be"
            )
        return self


def json_schema() -> dict[str, Any]:
    """The JSON Schema of ``model.yaml``, for editors."""
    return ModelSpec.model_json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema"}
