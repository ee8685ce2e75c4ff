"""The sections of ``model.yaml`` about data, features, training and schedule.

DAG files load every spec when Airflow parses them, so no heavy libraries are imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Literal, Self

from croniter import croniter
from pydantic import BeforeValidator, Field, StringConstraints, field_validator, model_validator

from perennial.core.durations import Duration
from perennial.core.partitions import Cadence, Unit, Weekday
from perennial.spec.constraints import (
    LOG_OBJECTIVES,
    ROWS,
    OptionalDuration,
    ShortDuration,
    TimeZone,
    TrainingWindow,
    check_cadence,
    check_columns,
    check_parameter,
    check_template,
)
from perennial.spec.sources import FeedSource
from perennial.spec.strict_model import Column, FolderSpec, StrictModel
from perennial.spec.text_format import TextFormatSpec

__all__ = [
    "Column",
    "ColumnType",
    "DataSpec",
    "FeatureSet",
    "FeaturesSpec",
    "FolderSpec",
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
    "TableJoin",
    "Task",
    "TrainingSpec",
]

ColumnType = Literal["string", "integer", "number", "boolean", "date", "timestamp"]
Task = Literal["binary", "multiclass", "regression", "ranking"]
Step = Literal["data", "train", "score", "monitor"]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Cron = Annotated[str, StringConstraints(pattern=r"^(@(daily|weekly|monthly|hourly)|(\S+\s+){4}\S+)$")]
Reason = Annotated[str, StringConstraints(min_length=10, max_length=300)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ReferenceTable(StrictModel):
    """A table that features.sql joins: one file in the landing area or on S3."""

    name: Name = Field(description="Name of the table in SQL.")
    source: str = Field(description="Path of the file, below {landing}/ or on s3://.")
    personal: list[Column] = Field(
        [], description="Its columns of personal data; features that depend on them are personal, too."
    )
    versions: Literal["by_date", "latest"] = Field(
        "by_date",
        description="Which copy of the file the rows of a partition join: by_date, the one that was there when the "
        "partition was due; latest, the newest one, for tables whose corrections hold for the past as well.",
    )

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if value == ROWS:
            raise ValueError("this name is reserved for the rows of the model: choose another")
        return value

    @field_validator("source")
    @classmethod
    def _source(cls, value: str) -> str:
        if "{" in value.removeprefix("{landing}"):
            raise ValueError("a reference table is one file: {landing} is the only placeholder")
        return check_template(value, dated=False)


class FeatureSet(FolderSpec):
    """The content of ``feature_set.yaml``: SQL that adds columns to the rows of several models."""

    name: Name = Field(description="Name of the folder.")
    owner: str = Field(min_length=1, description="Who is responsible for it.")
    description: str = Field(min_length=1, description="What it adds to a row.")
    references: list[ReferenceTable] = Field([], description="Tables that its SQL joins.")


class DataSpec(StrictModel):
    """The rows: where partitions come from, and what they contain."""

    source: FeedSource = Field(
        description="Path template with {date} (or {year}, {month}, {day}) of the start of a partition, and {hour} if "
        "every is hour, where {landing} is the landing area; or a query of a database: a section with sql and "
        "connection."
    )
    every: Unit = Field(
        "day", description="Length of a partition: hour, day, week or month. Its key is its start."
    )
    timezone: TimeZone = Field(
        "UTC",
        description="Time zone (IANA name, such as Europe/Berlin) of the days, weeks and months that partitions are, "
        "and of the schedule. Hours are always hours of UTC.",
    )
    week_starts: Weekday = Field(
        "monday", description="every week: weekday on which a partition begins, whose date is its key."
    )
    key: list[Column] = Field(
        min_length=1, max_length=8, description="Columns that identify a row within its partition."
    )
    event_time: Column | None = Field(
        None,
        description="Column with the time of the event; features use nothing later. When not given, the event of a row "
        "is that of its partition.",
    )
    row_number: Column | None = Field(
        None,
        description="An integer column that the files do not have: the number of a row in the file of its partition, "
        "from 1. It can be the key of rows that have no other.",
    )
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
    format: TextFormatSpec = Field(TextFormatSpec(), description="How text files and text cells are written.")
    arrival: Literal["none", "wait", "optional"] = Field(
        "none",
        description="wait: a scheduled run waits for its partition to land; a query, until it is ready, or has rows. "
        "none: it fails if the file is missing, or the query has no rows. optional: a missing file is normal, and so "
        "are files and queries without rows; the partition is published without rows.",
    )
    arrival_hours: float = Field(
        6,
        gt=0,
        le=72,
        description="arrival wait: hours after which a missing partition is a failure.",
    )
    quarantine_limit: Fraction = Field(
        0.05, description="Share of quarantined rows, or labels, above which none of the file are published."
    )

    @property
    def cadence(self) -> Cadence:
        """How often a partition begins."""
        return Cadence(self.every, self.week_starts, self.timezone)

    @model_validator(mode="after")
    def _every(self) -> Self:
        if isinstance(self.source, str):
            check_cadence("source", self.source, self.every)
        if self.every != "week" and "week_starts" in self.model_fields_set and self.week_starts != "monday":
            raise ValueError(
                f"week_starts is {self.week_starts}, which needs every: week (it is {self.every})"
            )
        return self

    @model_validator(mode="after")
    def _columns(self) -> Self:
        for key, names in (
            ("key", self.key),
            ("event_time", [self.event_time] if self.event_time else []),
            ("row_number", [self.row_number] if self.row_number else []),
            ("personal", self.personal),
        ):
            if missing := [n for n in names if n not in self.columns]:
                raise ValueError(
                    f"{key} names {missing[0]!r}, which is not in columns: {', '.join(self.columns)}"
                )
        if self.event_time and self.columns[self.event_time] not in ("date", "timestamp"):
            raise ValueError(
                f"event_time {self.event_time!r} is a {self.columns[self.event_time]}; a date or timestamp is needed"
            )
        if self.row_number and self.columns[self.row_number] != "integer":
            raise ValueError(
                f"row_number {self.row_number!r} is a {self.columns[self.row_number]}; it must be an integer"
            )
        _check_format(self.format, self.columns)
        check_columns(self.columns)
        if duplicates := [k for k in self.key if self.key.count(k) > 1]:
            raise ValueError(f"key names {duplicates[0]!r} twice")
        return self


class LabelSpec(StrictModel):
    """The label: what is predicted, and when it becomes known."""

    expression: str = Field(
        min_length=1, max_length=2000, description="SQL expression over the columns of the label feed."
    )
    source: FeedSource | None = Field(
        None,
        description="Path template of the label feed, or a query; when not given, expression names a column of the "
        "data.",
    )
    columns: dict[Column, ColumnType] = Field(
        {}, description="Name and type of each column of the label feed, key included."
    )
    personal: list[Column] = Field(
        [], description="Columns of personal data of the label feed; protected as those of data.personal."
    )
    format: TextFormatSpec | None = Field(
        None, description="How text of the label feed is written; as data.format says when not given."
    )
    arrives_after: OptionalDuration = Field(
        Duration(0, "partition"),
        description="Time from a partition to the one that its labels arrive with, such as 1 day or 2 partitions; in "
        "whole partitions, rounded up.",
    )

    @field_validator("columns")
    @classmethod
    def _columns(cls, value: dict[str, ColumnType]) -> dict[str, ColumnType]:
        check_columns(value)
        return value

    @model_validator(mode="after")
    def _personal(self) -> Self:
        if missing := [c for c in self.personal if c not in self.columns]:
            raise ValueError(
                f"personal names {missing[0]!r}, which is not in columns: {', '.join(self.columns)}"
            )
        if self.format is not None:
            _check_format(self.format, self.columns)
        return self


def _check_format(text_format: TextFormatSpec, columns: Mapping[str, ColumnType]) -> None:
    """Refuse a format that names a column which is not declared, or is no date.

    Raises:
        ValueError: it does.
    """
    for column in text_format.date_formats:
        if columns.get(column) not in ("date", "timestamp"):
            kind = f"a {columns[column]}" if column in columns else "not in columns"
            raise ValueError(
                f"format.date_formats names {column!r}, which is {kind}; a date or timestamp is needed"
            )
    if text_format.unnamed and text_format.unnamed not in columns:
        raise ValueError(f"format.unnamed names {text_format.unnamed!r}, which is not in columns")


class TableJoin(StrictModel):
    """A feature table whose columns are added to the rows."""

    table: Name = Field(description="Name of the feature table.")
    on: dict[Column, Column] = Field(
        {},
        description="Column of the rows for each column of the entity; by default the one of the same name.",
    )
    prefix: str = Field(
        "", max_length=64, description="Put before the names of its columns, to join a table more than once."
    )


def _join_of(value: object) -> object:
    """A name alone joins the table by the columns of its entity."""
    return {"table": value} if isinstance(value, str) else value


class FeaturesSpec(StrictModel):
    """Inputs of ``features.sql``, and how categories are encoded."""

    tables: list[Annotated[TableJoin, BeforeValidator(_join_of)]] = Field(
        [],
        description="Feature tables whose columns are added to the rows: the newest values that were known before a "
        "row's event_time. A name, or a section.",
    )
    sets: list[Name] = Field(
        [], description="Feature sets, applied to the rows in this order before features.sql."
    )
    references: list[ReferenceTable] = Field([], description="Reference tables of this model.")
    categorical: list[Column] = Field(
        [], description="Columns of features.sql that are encoded as categories, fixed in training."
    )
    category_order: Literal["name", "label", "search"] = Field(
        "name",
        description="The order of categories as trees see them: that of names, or of mean labels in the rows to fit on "
        "(not with task multiclass). search: that of labels, or of names with task multiclass, or no order but any two "
        "groups, whichever has the lower loss on the rows for early stopping.",
    )
    personal: dict[Column, Reason] = Field(
        {},
        description="Features that depend on columns of personal data, each with the reason why the model needs it; "
        "any other such feature is refused.",
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
    budget: float | None = Field(
        None, gt=0,
        description="Training rows times features times boosting rounds (times classes), in millions, those of "
        "early_stopping_cuts too, after which no trial starts. The first always runs. Default: trials alone limit it.",
    )  # fmt: skip
    minutes: float = Field(
        30, gt=0, le=1440,
        description="Minutes after which no search trial starts: a guard, since the result then depends on the load of "
        "the machine. The log and the report say when it ended a search.",
    )  # fmt: skip
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
    candidates: list[Literal["trees", "linear"]] = Field(
        ["trees"],
        min_length=1,
        description="Kinds of model that are fitted. Of trees and linear, the linear model becomes the challenger "
        "unless the trees are better on the held-out rows: clearly, or by 1%.",
    )
    objective: str | None = Field(
        None, description="XGBoost objective; the first of the task when not given."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU if there is one. cuda: fail without a GPU."
    )
    window: TrainingWindow = Field(
        None,
        description="Latest labelled partitions before the held-out ones to train on, such as 90 days or 24 "
        "partitions; all when not given. Partitions that exist are counted, as for holdout.",
    )
    holdout: ShortDuration = Field(
        Duration(14, "day"),
        description="Latest labelled partitions that are held out for the gate. Partitions that exist are counted: of "
        "daily ones, 14 days and 14 partitions are the latest 14, whatever their dates. The default of weeks is 8 "
        "weeks, of months 6 months.",
    )
    max_rows: int = Field(
        10_000_000, ge=1000,
        description="About how many rows each process of a training learns from at most. Of more, it takes a sample by "
        "key (ranking: by list), the same each time, which bounds memory and time.",
    )  # fmt: skip
    rounds: int = Field(300, ge=1, le=10_000, description="Most trees (per class, for multiclass).")
    early_stopping_rounds: int = Field(
        20, ge=1, le=1000, description="Trees without improvement to stop after."
    )
    early_stopping_cuts: int = Field(
        1, ge=1, le=10,
        description="Number of dates at which the rows before the held-out ones are divided into those to fit on and "
        "the later ones to stop on. The number of trees is the best on average over them, and so is the choice between "
        "the best search trial and the first one, which has params. 1: the latest rows alone decide.",
    )  # fmt: skip
    params: dict[str, float] = Field({}, description="XGBoost parameters, each within its bounds.")
    search: SearchSpec = Field(SearchSpec(), description="The hyperparameter search.")
    refit: bool = Field(
        True,
        description="Fit a challenger that passed the gate once more, with the same parameters, on the held-out "
        "partitions as well: this model is registered, with the evidence of the one that was evaluated.",
    )
    study_minutes: float = Field(
        10, ge=0, le=1440,
        description="Most minutes of each study of a challenger, once in 28 days: of the usefulness of its features, "
        "and of what it costs to be older. A study also takes no longer than the rest of the training, or a minute. "
        "0: none.",
    )  # fmt: skip
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Random seed; makes training repeatable.")

    @field_validator("candidates")
    @classmethod
    def _candidates(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError("candidates names one kind twice")
        return sorted(value, reverse=True)

    @field_validator("params")
    @classmethod
    def _params(cls, value: dict[str, float]) -> dict[str, float]:
        for name, number in value.items():
            check_parameter(name, number)
        return value

    @model_validator(mode="after")
    def _linear(self) -> Self:
        if "linear" in self.candidates and self.objective in LOG_OBJECTIVES:
            raise ValueError(
                f"candidates: a linear model cannot predict with objective {self.objective}, whose predictions are "
                "never negative; remove linear, or set another objective"
            )
        return self


class ScheduleSpec(StrictModel):
    """When DAGs run, and for which partitions."""

    data: Cron = Field(
        "0 2 * * *", description="When the partition that has ended is fetched (cron, in data.timezone)."
    )
    monitor: Cron = Field(
        "0 6 * * *",
        description="When the partitions since the last verdict are monitored (cron, in data.timezone).",
    )
    start: date = Field(
        description="First date: the first partition is the first that begins on it or later."
    )
    end: date | None = Field(
        None, description="Last date on which a partition begins; no end when not given."
    )

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
