"""A model's specification, ``model.yaml``: all its sections, and the rules across sections.

DAG files load every spec when Airflow parses them, so no heavy libraries are imported here.
"""

from __future__ import annotations

import hashlib
from typing import Any, Self

from pydantic import Field, model_validator
from pydantic.json_schema import GenerateJsonSchema

from perennial.core.durations import Duration
from perennial.core.partitions import Cadence
from perennial.core.sql import INTERNAL_PREFIX, fold_identifier
from perennial.spec import _renamed_keys
from perennial.spec.alerts import AlertsSpec
from perennial.spec.constraints import (
    GATE_METRICS,
    HOLDOUT_METRICS,
    MIN_BASELINE_PARTITIONS,
    MIN_BOOTSTRAP_PARTITIONS,
    OBJECTIVES,
    Within,
    check_cadence,
    check_schedule,
)
from perennial.spec.feature_table import FeatureTable
from perennial.spec.gate.risk import RiskSpec
from perennial.spec.policies import CardSpec, GateSpec, MonitoringSpec, RetentionSpec, RetrainingSpec
from perennial.spec.sections import (
    Column,
    DataSpec,
    FeatureSet,
    FeaturesSpec,
    FolderSpec,
    LabelSpec,
    Name,
    ReferenceTable,
    ScheduleSpec,
    Step,
    StepLimits,
    StrictModel,
    TableJoin,
    Task,
    TrainingSpec,
)
from perennial.spec.sources import PredictionsSpec, QuerySource

__all__ = [
    "CUT",
    "GATE_METRICS",
    "MAX_README",
    "FeatureSet",
    "ModelSpec",
    "MonitoringSpec",
    "ReferenceTable",
    "StepLimits",
    "json_schema",
    "schema_of",
    "source_specs",
]

#: Keys that do not influence results, and are not part of a spec's digest.
_NOT_IN_DIGEST: Any = {
    "owner": True,
    "description": True,
    "tags": True,
    "risk": True,
    "schedule": True,
    "compute": True,
    "limits": True,
    "alerts": True,
    "predictions": True,
    "card": True,
    "retention": True,
    "data": {"arrival": True, "arrival_hours": True, "source": {"ready"}},
    "label": {"source": {"ready"}},
    "gate": {"external_change", "approval"},
    "training": {"study_minutes"},
}
#: Characters of a README that the model's card shows.
MAX_README = 8000
#: Ends a README of which only the beginning is kept.
CUT = "…"
#: Defaults where partitions are long, so that each is several of them; otherwise those of the sections hold.
_LONG_PARTITIONS: dict[str, dict[str, dict[str, Duration]]] = {
    "week": {
        "training": {"holdout": Duration(8, "week")},
        "monitoring": {"window": Duration(8, "week")},
        "retraining": {"cooldown": Duration(4, "week"), "regular": Duration(4, "week")},
    },
    "month": {
        "training": {"holdout": Duration(6, "month")},
        "monitoring": {"window": Duration(3, "month")},
        "retraining": {
            "cooldown": Duration(3, "month"),
            "regular": Duration(3, "month"),
            "abandoned_after": Duration(1, "month"),
        },
    },
}


class ModelSpec(FolderSpec):
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
    risk: RiskSpec | None = Field(
        None,
        description="How much harm its decisions can do to people, and what follows; not said by default.",
    )
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
    schedule: ScheduleSpec = Field(description="When DAGs run, and for which partitions.")
    compute: dict[Step, Name] = Field(
        {}, description="Compute profile of a step; by default PERENNIAL_PROFILE, or local."
    )
    limits: dict[Step, StepLimits] = Field({}, description="Retries and timeouts of a step's tasks.")
    predictions: PredictionsSpec = Field(
        PredictionsSpec(),
        description="A table of a database that predictions are written to, besides the lake.",
    )
    retention: RetentionSpec = Field(
        RetentionSpec(),
        description="How long rows, predictions, reports, versions and table history are kept.",
    )
    alerts: AlertsSpec = Field(
        AlertsSpec(), description="Where to send a message when a signal turns bad, and when it recovers."
    )
    card: CardSpec = Field(
        CardSpec(),
        description="What people say about the model in its card: purpose, limits, risks, oversight.",
    )
    _suite: str = ""
    _readme: str = ""
    _sets: tuple[FeatureSet, ...] = ()
    _tables: tuple[FeatureTable, ...] = ()

    @property
    def suite(self) -> str:
        """The text of ``expectations.json``."""
        return self._suite

    @property
    def readme(self) -> str:
        """The text of ``README.md``, or its beginning of `MAX_README` characters that ends with `CUT`."""
        return self._readme

    @property
    def feature_sets(self) -> tuple[FeatureSet, ...]:
        """The feature sets named by ``features.sets``, in order."""
        return self._sets

    @property
    def feature_tables(self) -> list[tuple[TableJoin, FeatureTable]]:
        """The feature tables of ``features.tables``, in order, each with how it is joined."""
        return list(zip(self.features.tables, self._tables, strict=True))

    @property
    def table_columns(self) -> dict[str, str]:
        """The columns that feature tables add to the rows, and their declared types."""
        return {
            join.prefix + column: kind
            for join, table in self.feature_tables
            for column, kind in table.features.items()
        }

    @property
    def references(self) -> list[ReferenceTable]:
        """All reference tables: those of the feature sets, then those of the model."""
        return [r for s in self._sets for r in s.references] + self.features.references

    @property
    def personal_columns(self) -> list[str]:
        """Columns of personal data: a name that the data or the label feed declares personal is so in both."""
        return list(dict.fromkeys([*self.data.personal, *self.label.personal]))

    @property
    def personal_names(self) -> list[str]:
        """Columns and features of personal data, whose values reports and stored files must not have."""
        return list(dict.fromkeys([*self.personal_columns, *self.features.personal]))

    def connections(self, step: str) -> list[str]:
        """Names of the connections to databases that a step uses."""
        if step in ("publish_predictions", "erase"):
            return [self.predictions.connection] if self.predictions.connection else []
        sources = (self.data.source, self.label.source) if step == "data" else ()
        return list(dict.fromkeys(s.connection for s in sources if isinstance(s, QuerySource)))

    @property
    def hides_values(self) -> bool:
        """Whether no message may quote the model's data, because some of it is personal."""
        return bool(
            self.personal_columns
            or any(r.personal for r in self.references)
            or any(table.personal for table in self._tables)
        )

    @property
    def cadence(self) -> Cadence:
        """How often a partition begins."""
        return self.data.cadence

    @property
    def first_partition(self) -> str:
        """Key of the first partition of the schedule."""
        return self.cadence.first_on_or_after(self.schedule.start)

    @property
    def last_partition(self) -> str | None:
        """Key of the last partition of the schedule; None if it has no end."""
        end = self.schedule.end
        return None if end is None else self.cadence.last_on_or_before(end)

    @property
    def label_delay(self) -> int:
        """Number of partitions from a partition to the one that its labels arrive with."""
        return self.label.arrives_after.partitions(self.cadence)

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
        """SHA-256 of everything that influences a result: spec, SQL, suite, feature sets, feature tables.

        Owner, description, tags, README and card, schedule, compute profiles, retries, timeouts, waiting for a
        partition, and alerts do not influence results.
        """
        parts = [self.model_dump_json(exclude=_NOT_IN_DIGEST), self._sql, self._suite]
        parts += [text for s in self._sets for text in (s.model_dump_json(), s.sql)]
        parts += [text for t in self._tables for text in (t.digest, str(t.known_after), str(t.age_limit))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def bundle(self) -> dict[str, Any]:
        """The folder as one JSON-serialisable value, for a pod and for a registered version."""
        return {
            "model": self.model_dump(mode="json"),
            "sql": self._sql,
            "suite": self._suite,
            "readme": self._readme,
            "sets": [{"set": s.model_dump(mode="json"), "sql": s.sql} for s in self._sets],
            "tables": [table.bundle() for table in self._tables],
        }

    @classmethod
    def from_bundle(cls, bundle: dict[str, Any]) -> ModelSpec:
        """Restore the spec from a `bundle`, of this version of the library or one that had other names for keys.

        Raises:
            ValueError, KeyError, TypeError: it is not a bundle.
        """
        spec = cls.model_validate(_renamed_keys.upgrade(bundle["model"]))
        spec._sql, spec._suite = bundle["sql"], bundle["suite"]
        spec._readme = str(bundle.get("readme", ""))  # versions of before there were model cards have none
        sets = [(FeatureSet.model_validate(item["set"]), item["sql"]) for item in bundle["sets"]]
        for feature_set, sql in sets:
            feature_set._sql = sql
        spec._sets = tuple(feature_set for feature_set, _ in sets)
        spec._tables = tuple(
            FeatureTable.from_parts(
                item["table"], item["sql"], tuple(map(cls.model_validate, item["sources"]))
            )
            for item in bundle.get("tables", ())  # versions of before there were feature tables have none
        )
        return spec

    def lake_column(self, name: str) -> str:
        """The name of a column that one of the lake's tables has beside the key.

        Args:
            name: its usual name, such as ``label``, ``prediction`` or ``run_id``.

        Returns:
            The name; if a column of the key has it, the name after two underscores.
        """
        taken = {fold_identifier(k) for k in self.data.key}
        return INTERNAL_PREFIX + name if name in taken else name

    def step_limits(self, step: str) -> StepLimits:
        """Retries and timeouts of a step's tasks."""
        return self.limits.get(step, StepLimits())  # type: ignore[call-overload, no-any-return]

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: Any) -> Any:
        data = values.get("data") if isinstance(values, dict) else None
        every = data.get("every") if isinstance(data, dict) else None
        for name, defaults in _LONG_PARTITIONS.get(str(every), {}).items():
            if isinstance(section := values.get(name, {}), dict):
                values = {**values, name: {**defaults, **section}}
        return values

    @model_validator(mode="after")
    def _check_durations(self) -> Self:
        names = ("label", "training", "monitoring", "retraining", "retention")
        for name in names:
            section: StrictModel = getattr(self, name)
            for key, field in type(section).model_fields.items():
                for bounds in (m for m in field.metadata if isinstance(m, Within)):
                    if (value := getattr(section, key)) is not None:
                        bounds.check(f"{name}.{key}", value, self.cadence)
        rows, window = self.retention.rows, self.training.window
        read = (window.partitions(self.cadence) if window else 0) + self.training.holdout.partitions(
            self.cadence
        )
        needed = max(read, self.retraining.trial.partitions(self.cadence)) + self.label_delay
        if rows is not None and rows.partitions(self.cadence) < needed:
            raise ValueError(
                f"retention.rows is {rows}, which is less than a training reads, or a trial: training.window and "
                f"training.holdout, or retraining.trial, and label.arrives_after are {needed} partitions"
            )
        policy = self.retraining
        if policy.ab_share and policy.trial.partitions(self.cadence) < MIN_BASELINE_PARTITIONS:
            raise ValueError(
                f"retraining.ab_share is {policy.ab_share:g} and retraining.trial {policy.trial}: an A/B trial needs "
                f"at least {MIN_BASELINE_PARTITIONS} partitions; set trial to {MIN_BASELINE_PARTITIONS} partitions or "
                "more, better to several times as many"
            )
        return self

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
        if self.task == "multiclass" and self.features.category_order == "label":
            raise ValueError(
                "features.category_order is 'label', the order of mean labels, which several classes do not have: with "
                "task multiclass leave it out, or set it to 'name'"
            )
        few = self.training.holdout.partitions(self.cadence) < MIN_BOOTSTRAP_PARTITIONS
        if self.gate.bootstrap_unit == "partitions" and (self.task == "ranking" or few):
            raise ValueError(
                f"gate.bootstrap_unit is 'partitions': that needs training.holdout of {MIN_BOOTSTRAP_PARTITIONS} "
                f"partitions or more (it is {self.training.holdout}), and another task than ranking (it is {self.task})"
            )
        return self

    @model_validator(mode="after")
    def _check_cadence(self) -> Self:
        if isinstance(self.label.source, str):
            check_cadence("label.source", self.label.source, self.data.every)
        if self.data.every != "day":
            for key, cron, each in (
                ("data", self.schedule.data, True),
                ("monitor", self.schedule.monitor, False),
            ):
                check_schedule(f"schedule.{key}", cron, self.cadence, each=each)
        return self

    @model_validator(mode="after")
    def _check_group_columns(self) -> Self:
        if (self.task == "ranking") != (self.group is not None):
            raise ValueError("group, the column that identifies a list, is needed for task ranking only")
        if self.group is not None and self.group not in self.data.columns:
            raise ValueError(f"group names {self.group!r}, which is not in data.columns")
        if self.task == "ranking" and self.monitoring.fairness:
            raise ValueError(
                f"monitoring.fairness names {self.monitoring.fairness[0]!r}: the scores of a ranking have a meaning "
                "within their list only, so groups cannot be compared by them; remove it, and name the column in "
                "monitoring.slices to monitor the loss of each group"
            )
        if self.gate.slices is not None and not self.monitoring.slices:
            raise ValueError(
                "gate.slices needs monitoring.slices, the columns whose values form slices: name them there, or remove "
                "gate.slices"
            )
        if self.gate.fairness is not None:
            label = None if self.label.source else self.label.expression
            self.gate.fairness.check(self.task, self.data.columns, self.personal_columns, label)
        for key in ("slices", "fairness"):
            for column in getattr(self.monitoring, key):
                if column not in self.data.columns:
                    raise ValueError(f"monitoring.{key} names {column!r}, which is not in data.columns")
                if column in self.personal_columns:
                    raise ValueError(
                        f"monitoring.{key} names {column!r}, which is personal data: its values would "
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
        elif label.columns or label.arrives_after:
            raise ValueError("label.columns and label.arrives_after need label.source, the label feed")
        elif label.format:
            raise ValueError(
                "label.format needs label.source, the label feed; data.format is that of the rows"
            )
        elif label.expression in (*self.data.key, self.data.event_time, self.data.row_number, self.group):
            raise ValueError(
                f"label.expression is {label.expression!r}, a key column, the event time, the row number or the group: "
                "the label is hidden from features, and these columns must not be"
            )
        return self


def source_specs(table: FeatureTable) -> tuple[ModelSpec, ...]:
    """The models whose published rows a feature table reads, in order, without their features."""
    return table._sources


class _SchemaGenerator(GenerateJsonSchema):
    def encode_default(self, dft: Any) -> Any:
        """Write a default; pydantic would write a duration as the fields of its dataclass."""
        return str(dft) if isinstance(dft, Duration) else super().encode_default(dft)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of ``model.yaml``, for editors."""
    return schema_of(ModelSpec)


def schema_of(kind: type[StrictModel]) -> dict[str, Any]:
    """The JSON Schema of a file's content, for editors."""
    return kind.model_json_schema(schema_generator=_SchemaGenerator) | {
        "$schema": "https://json-schema.org/draft/2020-12/schema"
    }
