"""The sections of ``model.yaml`` about data, features, training and schedule.

DAG files load every spec when Airflow parses them, so no heavy libraries are imported here.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self

from croniter import croniter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from perennial.spec.constraints import (
    LAKE_COLUMNS,
    RESERVED_NAMES,
    check_columns,
    check_parameter,
    check_template,
)

__all__ = [
    "Column",
    "ColumnType",
    "DataSpec",
    "FeatureSet",
    "FeaturesSpec",
    "Fraction",
    "LabelSpec",
    "Name",
    "ReferenceTable",
    "ScheduleSpec",
    "SearchRange",
    "SearchSpec",
    "Step",
    "StepLimits",
    "StrictModel",
    "Task",
    "TrainingSpec",
]

ColumnType = Literal["string", "integer", "number", "boolean", "date", "timestamp"]
Task = Literal["binary", "multiclass", "regression", "ranking"]
Step = Literal["data", "train", "score", "monitor"]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Column = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Cron = Annotated[str, StringConstraints(pattern=r"^(@(daily|weekly|monthly|hourly)|(\S+\s+){4}\S+)$")]
Fraction = Annotated[float, Field(ge=0, le=1)]


class StrictModel(BaseModel):
    """Base of every section: unknown keys are refused, and values are immutable."""

    # Validated defaults: a default of 10 for a float becomes 10.0, as after a round trip through JSON, so that a spec
    # has the same digest wherever it is read.
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, validate_default=True)


class ReferenceTable(StrictModel):
    """A table that features.sql joins: one file in the landing area or on S3."""

    name: Name = Field(description="Name of the table in SQL.")
    source: str = Field(description="Path of the file, below {landing}/ or on s3://.")

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if value in RESERVED_NAMES["references"]:
            raise ValueError("this name is reserved for the rows of the model: choose another")
        return value

    @field_validator("source")
    @classmethod
    def _source(cls, value: str) -> str:
        if "{" in value.removeprefix("{landing}"):
            raise ValueError("a reference table is one file: {landing} is the only placeholder")
        return check_template(value, dated=False)


class FeatureSet(StrictModel):
    """The content of ``feature_set.yaml``: SQL that adds columns to the rows of several models."""

    name: Name = Field(description="Name of the folder.")
    owner: str = Field(min_length=1, description="Who is responsible for it.")
    description: str = Field(min_length=1, description="What it adds to a row.")
    references: list[ReferenceTable] = Field([], description="Tables that its SQL joins.")
    _folder: Path = Path()
    _sql: str = ""

    @property
    def folder(self) -> Path:
        """The folder that it was read from."""
        return self._folder

    @property
    def sql(self) -> str:
        """The text of ``features.sql``."""
        return self._sql


class DataSpec(StrictModel):
    """The rows: where partitions come from, and what they contain."""

    source: str = Field(
        description="Path template with {date} (or {year}, {month}, {day}); {landing} is the landing area."
    )
    key: list[Column] = Field(
        min_length=1, max_length=8, description="Columns that identify a row within its partition."
    )
    event_time: Column = Field(description="Column with the time of the event; features use nothing later.")
    columns: dict[Column, ColumnType] = Field(
        min_length=2, max_length=2000, description="Name and type of each column."
    )
    personal: list[Column] = Field(
        [], description="Columns of personal data; never shown in logs, reports or messages."
    )
    extra_columns: Literal["ignore", "stop"] = Field(
        "ignore",
        description="What to do about a column that is not listed here: ignore it, or stop the partition.",
    )
    arrival: Literal["none", "wait"] = Field(
        "none",
        description="wait: a scheduled run waits for its partition to land. none: it fails if the file is missing.",
    )
    arrival_hours: float = Field(
        6,
        gt=0,
        le=72,
        description="arrival wait: hours after which a missing partition is a failure.",
    )
    quarantine_limit: Fraction = Field(
        0.05, description="Share of quarantined rows above which the partition is not published."
    )

    @field_validator("source")
    @classmethod
    def _source(cls, value: str) -> str:
        return check_template(value, dated=True)

    @model_validator(mode="after")
    def _columns(self) -> Self:
        for key, names in (
            ("key", self.key),
            ("event_time", [self.event_time]),
            ("personal", self.personal),
        ):
            if missing := [n for n in names if n not in self.columns]:
                raise ValueError(
                    f"{key} names {missing[0]!r}, which is not in columns: {', '.join(self.columns)}"
                )
        if self.columns[self.event_time] not in ("date", "timestamp"):
            raise ValueError(
                f"event_time {self.event_time!r} is a {self.columns[self.event_time]}; a date or timestamp is needed"
            )
        check_columns(self.columns)
        if reserved := [k for k in self.key if k in LAKE_COLUMNS]:
            raise ValueError(
                f"key names {reserved[0]!r}, which is reserved for the tables of the lake: rename it in the feed"
            )
        if duplicates := [k for k in self.key if self.key.count(k) > 1]:
            raise ValueError(f"key names {duplicates[0]!r} twice")
        return self


class LabelSpec(StrictModel):
    """The label: what is predicted, and when it becomes known."""

    expression: str = Field(
        min_length=1, max_length=2000, description="SQL expression over the columns of the label feed."
    )
    source: str | None = Field(
        None,
        description="Path template of the label feed; when not given, expression names a column of the data.",
    )
    columns: dict[Column, ColumnType] = Field(
        {}, description="Name and type of each column of the label feed, key included."
    )
    arrives_after_days: int = Field(
        0, ge=0, le=365, description="Days from the date of a partition to its labels."
    )

    @field_validator("source")
    @classmethod
    def _source(cls, value: str | None) -> str | None:
        return value if value is None else check_template(value, dated=True)

    @field_validator("columns")
    @classmethod
    def _columns(cls, value: dict[str, ColumnType]) -> dict[str, ColumnType]:
        check_columns(value)
        return value


class FeaturesSpec(StrictModel):
    """Inputs of ``features.sql``, and how categories are encoded."""

    sets: list[Name] = Field(
        [], description="Feature sets, applied to the rows in this order before features.sql."
    )
    references: list[ReferenceTable] = Field([], description="Reference tables of this model.")
    categorical: list[Column] = Field(
        [], description="Columns of features.sql that are encoded as categories, fixed in training."
    )
    unseen: Literal["missing", "stop"] = Field(
        "missing",
        description="What to do about a category unseen in training: treat it as missing, or stop the step.",
    )


class SearchRange(StrictModel):
    """The values of a parameter that the search may draw: a range, or choices."""

    low: float | None = Field(None, description="Lowest value; needs high.")
    high: float | None = Field(None, description="Highest value; needs low.")
    log: bool = Field(False, description="Draw uniformly on a logarithmic scale.")
    choices: list[float] = Field([], description="Values to choose from, instead of low and high.")

    def contains(self, value: float) -> bool:
        """Whether the search can draw this value."""
        return value in self.choices if self.choices else (self.low or 0) <= value <= (self.high or 0)

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.choices:
            if self.low is not None or self.high is not None:
                raise ValueError("give choices, or low and high, not both")
        elif self.low is None or self.high is None or self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        elif self.log and self.low <= 0:
            raise ValueError(f"a log range needs low above 0, received {self.low}")
        return self


class SearchSpec(StrictModel):
    """Budget and space of the hyperparameter search (Optuna)."""

    trials: int = Field(
        0, ge=0, le=1000,
        description="Number of search trials; 0: no search, params are used as given. The first ten run in parallel if "
        "memory allows.",
    )  # fmt: skip
    minutes: float = Field(10, gt=0, le=1440, description="Minutes after which no search trial starts.")
    space: dict[str, SearchRange] = Field(
        {}, description="Range (low, high, log) or choices of each parameter."
    )

    @model_validator(mode="after")
    def _space(self) -> Self:
        for name, item in self.space.items():
            for value in [v for v in (item.low, item.high, *item.choices) if v is not None]:
                try:
                    check_parameter(name, value)
                except ValueError as error:
                    raise ValueError(f"space.{name}: {error}") from None
            if name == "max_bin":
                raise ValueError(
                    "space.max_bin: cannot be searched, because search trials share the binned data; set it in params"
                )
        if self.trials and not self.space:
            raise ValueError(f"trials is {self.trials} but space is empty: name the parameters to search")
        return self


class TrainingSpec(StrictModel):
    """How a challenger is trained."""

    engine: Literal["xgboost"] = Field("xgboost", description="Library that fits the model.")
    objective: str | None = Field(
        None, description="XGBoost objective; the first of the task when not given."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU if there is one. cuda: fail without a GPU."
    )
    window_days: int | None = Field(
        None, ge=2, le=3650, description="Days before the held-out days to train on; all when not given."
    )
    holdout_days: int = Field(14, ge=1, le=365, description="Latest labelled days, held out for the gate.")
    rounds: int = Field(
        300, ge=1, le=10_000, description="Maximum number of trees (per class, for multiclass)."
    )
    early_stopping_rounds: int = Field(
        20, ge=1, le=1000, description="Stop after this many trees without improvement."
    )
    params: dict[str, float] = Field({}, description="XGBoost parameters, each within its bounds.")
    search: SearchSpec = Field(SearchSpec(), description="The hyperparameter search.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Random seed; makes training repeatable.")

    @field_validator("params")
    @classmethod
    def _params(cls, value: dict[str, float]) -> dict[str, float]:
        for name, number in value.items():
            check_parameter(name, number)
        return value

    @model_validator(mode="after")
    def _window(self) -> Self:
        if self.window_days is not None and self.window_days <= self.holdout_days:
            raise ValueError(
                f"window_days is {self.window_days}; it must be more than holdout_days ({self.holdout_days})"
            )
        return self


class ScheduleSpec(StrictModel):
    """When DAGs run (UTC), and for which partitions."""

    data: Cron = Field("0 2 * * *", description="When the partition of the day before is fetched (cron).")
    monitor: Cron = Field(
        "0 6 * * *", description="When the partitions since the last verdict are monitored (cron)."
    )
    start: date = Field(description="First partition date.")
    end: date | None = Field(None, description="Last partition date; no end when not given.")

    @field_validator("data", "monitor")
    @classmethod
    def _cron(cls, value: str) -> str:
        if not croniter.is_valid(value):
            raise ValueError(
                "not a cron expression: minute (0-59) hour (0-23) day (1-31) month (1-12) weekday (0-6)"
            )
        return value

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.end and self.end < self.start:
            raise ValueError(f"end {self.end} is before start {self.start}")
        return self


class StepLimits(StrictModel):
    """Retries, timeouts and deadline of a step's tasks."""

    retries: int = Field(2, ge=0, le=10, description="Retries of a failed task.")
    timeout_minutes: int = Field(60, ge=1, le=2880, description="Minutes after which a task is stopped.")
    deadline_minutes: int | None = Field(
        None,
        ge=1,
        le=20_160,
        description="Minutes after which an unfinished run is an incident; by default, as long as its tasks may take.",
    )
