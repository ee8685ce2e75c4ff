"""A model's specification, ``model.yaml``: typed, bounded, unknown keys refused.

Light on purpose: DAG files load every spec at parse time, so nothing but pydantic and PyYAML is imported here.
"""

from __future__ import annotations

import hashlib
import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

ColumnType = Literal["string", "integer", "number", "boolean", "date", "timestamp"]
Task = Literal["binary", "multiclass", "regression", "ranking"]
Step = Literal["data", "train", "score", "monitor"]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Column = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Cron = Annotated[str, StringConstraints(pattern=r"^(@(daily|weekly|monthly|hourly)|(\S+\s+){4}\S+)$")]
Share = Annotated[float, Field(ge=0, le=1)]

#: The metrics a gate may judge by. Each is a mean of one loss a row (a group, for ranking), so that champion and
#: challenger can be compared by a paired bootstrap; lower is better.
GATE_METRICS: dict[str, tuple[str, ...]] = {
    "binary": ("log_loss", "brier"),
    "multiclass": ("log_loss", "error_rate"),
    "regression": ("squared_error", "absolute_error"),
    "ranking": ("ndcg_loss",),
}
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "binary": ("binary:logistic",),
    "multiclass": ("multi:softprob",),
    "regression": (
        "reg:squarederror",
        "reg:absoluteerror",
        "reg:pseudohubererror",
        "reg:tweedie",
        "count:poisson",
    ),
    "ranking": ("rank:ndcg", "rank:pairwise"),
}
#: XGBoost parameters that a spec may set or search, with the bounds of each.
PARAMETERS: dict[str, tuple[float, float]] = {
    "max_depth": (1, 16),
    "learning_rate": (1e-4, 1),
    "min_child_weight": (0, 1e6),
    "subsample": (0.05, 1),
    "colsample_bytree": (0.05, 1),
    "colsample_bylevel": (0.05, 1),
    "gamma": (0, 1e6),
    "reg_alpha": (0, 1e6),
    "reg_lambda": (0, 1e6),
    "max_bin": (16, 1024),
    "max_leaves": (0, 4096),
    "max_delta_step": (0, 100),
    "scale_pos_weight": (1e-3, 1e4),
}
WHOLE = {"max_depth", "max_bin", "max_leaves"}


class Strict(BaseModel):
    """Base of every section: unknown keys are refused, values are not changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class ReferenceTable(Strict):
    """A table that features join to: a file in the landing area, or one partition a date."""

    name: Name
    source: str = Field(description="Path of one file, below {landing}/ or on s3://.")

    @field_validator("source")
    @classmethod
    def _source(cls, value: str) -> str:
        if "{" in value.removeprefix("{landing}"):
            raise ValueError("a reference table is one file: no placeholder but {landing}")
        return check_template(value, dated=False)


class FeatureSet(Strict):
    """``feature_set.yaml``: features that several models share. ``features.sql`` beside it adds columns to ``rows``."""

    name: Name
    owner: str = Field(min_length=1)
    description: str = Field(min_length=1)
    references: list[ReferenceTable] = []
    _folder: Path = Path()
    _sql: str = ""

    @property
    def folder(self) -> Path:
        """The folder it was read from."""
        return self._folder

    @property
    def sql(self) -> str:
        """The text of ``features.sql``."""
        return self._sql


class DataSpec(Strict):
    """Where partitions come from and what they hold."""

    source: str = Field(
        description="Path template with {date} (or {year}, {month}, {day}); {landing} is the feed."
    )
    key: list[Column] = Field(
        min_length=1, max_length=8, description="Columns that name a row within its partition."
    )
    event_time: Column = Field(description="When the row happened; features know nothing later.")
    columns: dict[Column, ColumnType] = Field(
        min_length=2, max_length=2000, description="Name and type of each column."
    )
    personal: list[Column] = Field(
        [], description="Columns of personal data: shown in no log, report or message."
    )
    extra_columns: Literal["ignore", "stop"] = Field(
        "ignore", description="What a column not listed here does."
    )
    quarantine_limit: Share = Field(
        0.05, description="Share of rows in quarantine above which the partition stops."
    )

    @field_validator("source")
    @classmethod
    def _source(cls, value: str) -> str:
        return check_template(value, dated=True)

    @model_validator(mode="after")
    def _columns(self) -> Self:
        for what, names in (
            ("key", self.key),
            ("event_time", [self.event_time]),
            ("personal", self.personal),
        ):
            if missing := [n for n in names if n not in self.columns]:
                raise ValueError(
                    f"{what} names {missing[0]!r}, which is not in columns: {', '.join(self.columns)}"
                )
        if self.columns[self.event_time] not in ("date", "timestamp"):
            raise ValueError(
                f"event_time {self.event_time!r} is a {self.columns[self.event_time]}: date or timestamp"
            )
        if "partition_date" in self.columns:
            raise ValueError("columns must not hold 'partition_date': the lake adds it")
        if len({c.lower() for c in self.columns}) < len(self.columns):
            raise ValueError("two columns differ in case only, which SQL cannot tell apart")
        return self


class LabelSpec(Strict):
    """What is predicted, and when it becomes known."""

    expression: str = Field(min_length=1, max_length=2000, description="SQL over the label feed's columns.")
    source: str | None = Field(
        None, description="Path template of the label feed; none: a column of the data itself."
    )
    columns: dict[Column, ColumnType] = Field(
        {}, description="Name and type of the label feed's columns, key included."
    )
    arrives_after_days: int = Field(
        0, ge=0, le=365, description="Days from a partition's date to its labels."
    )

    @field_validator("source")
    @classmethod
    def _source(cls, value: str | None) -> str | None:
        return value if value is None else check_template(value, dated=True)


class FeaturesSpec(Strict):
    """What ``features.sql`` is built upon, and how categories are encoded."""

    sets: list[Name] = Field(
        [], description="Feature sets applied to the rows, in order, before features.sql."
    )
    references: list[ReferenceTable] = Field([], description="Reference tables of this model alone.")
    categorical: list[Column] = Field(
        [], description="Columns of features.sql that get codes, fixed at training."
    )
    unseen: Literal["missing", "stop"] = Field(
        "missing", description="What a category unseen in training becomes."
    )


class Range(Strict):
    """A range, or a choice, that the search draws a parameter from."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: list[float] = []

    @model_validator(mode="after")
    def _either(self) -> Self:
        if self.choices:
            if self.low is not None or self.high is not None:
                raise ValueError("give choices, or low and high, not both")
        elif self.low is None or self.high is None or self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        elif self.log and self.low <= 0:
            raise ValueError(f"a log range needs low above 0, received {self.low}")
        return self


class SearchSpec(Strict):
    """The budget and the space of the hyperparameter search (Optuna)."""

    trials: int = Field(0, ge=0, le=1000, description="Trials; 0: no search, params are taken as they are.")
    minutes: float = Field(10, gt=0, le=1440, description="No trial starts after this many minutes.")
    space: dict[str, Range] = {}

    @model_validator(mode="after")
    def _space(self) -> Self:
        for name, item in self.space.items():
            for value in [v for v in (item.low, item.high, *item.choices) if v is not None]:
                check_parameter(name, value)
            if name == "max_bin":
                raise ValueError(
                    "max_bin cannot be searched: the binned data is shared by the trials; set it in params"
                )
        if self.trials and not self.space:
            raise ValueError(f"trials is {self.trials} but space is empty: name the parameters to search")
        return self


class TrainingSpec(Strict):
    """How a challenger is made."""

    engine: Literal["xgboost"] = "xgboost"
    objective: str | None = Field(None, description="XGBoost objective; the task's usual one when not given.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="cuda: fail where there is none.")
    window_days: int | None = Field(None, ge=2, le=3650, description="Partition days to train on; none: all.")
    holdout_days: int = Field(
        14, ge=1, le=365, description="The latest labelled days, kept out and judged on."
    )
    rounds: int = Field(300, ge=1, le=10_000)
    early_stopping_rounds: int = Field(20, ge=1, le=1000)
    params: dict[str, float] = {}
    search: SearchSpec = SearchSpec()
    seed: int = Field(0, ge=0, le=2**31 - 1)

    @field_validator("params")
    @classmethod
    def _params(cls, value: dict[str, float]) -> dict[str, float]:
        for name, number in value.items():
            check_parameter(name, number)
        return value


class GateSpec(Strict):
    """What a challenger must show before it becomes champion."""

    metric: str | None = Field(
        None, description="Loss judged on the held-out rows; the task's first when not given."
    )
    margin: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Relative improvement over the champion that the confidence interval must lie above."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1)
    resamples: int = Field(1000, ge=100, le=20_000)
    beat_baseline: bool = True
    bounds: dict[str, float] = Field(
        {}, description="Highest value allowed of a held-out metric, by its name."
    )


class MonitoringSpec(Strict):
    """When a model counts as drifted."""

    window_days: int = Field(28, ge=1, le=366)
    min_rows: int = Field(1000, ge=10, description="Fewer rows than this leave a column undetermined.")
    psi_threshold: float = Field(0.2, gt=0, le=10)
    noise_floor: bool = Field(
        True, description="A column drifts only beyond what windows inside its own training data showed."
    )
    null_jump: Share = Field(0.1, description="Rise of a column's null share that is drift by itself.")
    drift_share: Share = Field(
        0.1, description="Importance-weighted share of drifted columns that is suspicious."
    )
    judged_share: Share = Field(
        0.5, description="Weight that must be judged, or the verdict is undetermined."
    )
    persistence: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1, le=52)]] = Field(
        (2, 3), description="n of the last m verdicts suspicious: drifted."
    )
    performance_drop: float = Field(
        0.2, gt=0, le=10, description="Relative rise of the gate's loss that is a drop."
    )
    report_rows: int = Field(5000, ge=100, le=100_000, description="Rows a side in Evidently's picture.")

    @model_validator(mode="after")
    def _n_of_m(self) -> Self:
        if self.persistence[0] > self.persistence[1]:
            raise ValueError(f"persistence is {list(self.persistence)}: the first must not exceed the second")
        return self


class RetrainingSpec(Strict):
    """When a verdict leads to a retraining."""

    on: list[Literal["drift", "performance", "age"]] = ["drift", "performance"]
    cooldown_days: int = Field(7, ge=0, le=365)
    budget: int = Field(12, ge=0, le=1000, description="Retrainings at most within budget_days.")
    budget_days: int = Field(365, ge=1, le=3650)
    max_age_days: int = Field(
        180, ge=1, le=3650, description="With 'age': a champion older than this is retrained."
    )
    lost_after_days: int = Field(
        7, ge=1, le=365, description="A retraining that did not end by then counts as lost."
    )


class ScheduleSpec(Strict):
    """When DAGs run by themselves (UTC)."""

    data: Cron = "0 2 * * *"
    monitor: Cron = "0 6 * * 1"
    start: date = Field(description="First partition date.")
    end: date | None = Field(None, description="Last partition date; none: goes on.")

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.end and self.end < self.start:
            raise ValueError(f"end {self.end} is before start {self.start}")
        return self


class StepSpec(Strict):
    """Limits of the tasks of a stage."""

    retries: int = Field(2, ge=0, le=10)
    timeout_minutes: int = Field(60, ge=1, le=2880)


class ModelSpec(Strict):
    """``model.yaml``: everything that is said about one model."""

    name: Name
    task: Task
    owner: str = Field(min_length=1, max_length=100)
    description: str = Field(min_length=1, max_length=1000)
    tags: list[Name] = []
    group: Column | None = Field(
        None, description="Ranking only: the column that names the list a row belongs to."
    )
    data: DataSpec
    label: LabelSpec
    features: FeaturesSpec = FeaturesSpec()
    training: TrainingSpec = TrainingSpec()
    gate: GateSpec = GateSpec()
    monitoring: MonitoringSpec = MonitoringSpec()
    retraining: RetrainingSpec = RetrainingSpec()
    schedule: ScheduleSpec
    compute: dict[Step, Literal["local"]] = Field(
        {}, description="Compute profile a step; local when not given."
    )
    limits: dict[Step, StepSpec] = {}
    alerts: list[Annotated[str, StringConstraints(pattern=r"^https?://\S+$")]] = Field(
        [], description="Webhooks told of failures, beside PERENNIAL_ALERT_URL."
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
        """SHA-256 of everything in the folder that decides a result: spec, SQL, suite, feature sets."""
        parts = [self.model_dump_json(), self._sql, self._suite]
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

    def limit(self, step: str) -> StepSpec:
        """Retries and timeout of a stage."""
        return self.limits.get(step, StepSpec())  # type: ignore[call-overload, no-any-return]

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
        if (self.task == "ranking") != (self.group is not None):
            raise ValueError(
                "group names the list a row belongs to: needed for task ranking, and for no other"
            )
        if self.group is not None and self.group not in self.data.columns:
            raise ValueError(f"group names {self.group!r}, which is not in data.columns")
        if self.label.source is not None:
            if missing := [k for k in self.data.key if k not in self.label.columns]:
                raise ValueError(
                    f"label.columns lacks the key column {missing[0]!r}: labels could not be joined"
                )
        elif self.label.expression not in self.data.columns:
            raise ValueError(
                f"label.expression is {self.label.expression!r}: without label.source it names one of "
                "data.columns, which features then do not see"
            )
        elif self.label.columns or self.label.arrives_after_days:
            raise ValueError(
                "label.columns and label.arrives_after_days need label.source: the label's own feed"
            )
        return self


def check_template(value: str, *, dated: bool) -> str:
    """Refuse a path template that could leave its folder, or that does not name a partition.

    Raises:
        ValueError: the template cannot be used.
    """
    names = set(re.findall(r"\{([^}]*)\}", value))
    if unknown := names - {"landing", "date", "year", "month", "day"}:
        raise ValueError(
            f"unknown placeholder {{{min(unknown)}}}; allowed: {{landing}} {{date}} {{year}} {{month}} {{day}}"
        )
    if re.search(r"[{}]", re.sub(r"\{[a-z]+\}", "", value)) or not value:
        raise ValueError("a brace is not closed")
    if ".." in re.split(r"[/\\]", value):
        raise ValueError("'..' is not allowed: a source stays below its folder")
    if not value.startswith(("{landing}/", "s3://")):
        raise ValueError("a source starts with {landing}/ or s3://")
    if "\0" in value or any(c in value for c in "*?[]'\n"):
        raise ValueError("wildcards, quotes and control characters are not allowed")
    if not value.endswith((".parquet", ".csv", ".csv.gz")):
        raise ValueError("a source is a .parquet, .csv or .csv.gz file")
    if dated and not ("date" in names or {"year", "month", "day"} <= names):
        raise ValueError(
            "{date}, or {year}, {month} and {day}, must be in it: each partition has its own file"
        )
    return value


def check_parameter(name: str, value: float) -> None:
    """Refuse an XGBoost parameter that is unknown, owned by the training step, or out of bounds.

    Raises:
        ValueError: with the name, the value received and what is allowed.
    """
    if name not in PARAMETERS:
        raise ValueError(f"parameter {name!r} cannot be set here; allowed: {', '.join(PARAMETERS)}")
    low, high = PARAMETERS[name]
    if not low <= value <= high:
        raise ValueError(f"parameter {name} is {value:g}; allowed: {low:g} to {high:g}")
    if name in WHOLE and value != int(value):
        raise ValueError(f"parameter {name} is {value:g}; a whole number is needed")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of ``model.yaml``, for editors."""
    return ModelSpec.model_json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema"}
