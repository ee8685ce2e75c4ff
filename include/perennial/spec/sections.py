"""The sections of ``model.yaml``: typed, bounded, unknown keys refused.

Light on purpose: DAG files load every spec at parse time, so nothing but pydantic and PyYAML is imported here.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from perennial.spec.constraints import (
    LAKE_COLUMNS,
    RESERVED_NAMES,
    check_columns,
    check_parameter,
    check_template,
)

ColumnType = Literal["string", "integer", "number", "boolean", "date", "timestamp"]
Task = Literal["binary", "multiclass", "regression", "ranking"]
Step = Literal["data", "train", "score", "monitor"]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Column = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Cron = Annotated[str, StringConstraints(pattern=r"^(@(daily|weekly|monthly|hourly)|(\S+\s+){4}\S+)$")]
Fraction = Annotated[float, Field(ge=0, le=1)]


class StrictModel(BaseModel):
    """Base of every section: unknown keys are refused, values are not changed after loading."""

    # Defaults are validated too: a 10 that is declared as a float is then 10.0 here as it is after a trip through JSON,
    # and a spec has one digest wherever it is read.
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, validate_default=True)


class ReferenceTable(StrictModel):
    """A table that features join to: a file in the landing area, or one partition a date."""

    name: Name = Field(description="The name by which SQL joins it.")
    source: str = Field(description="Path of one file, below {landing}/ or on s3://.")

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if value in RESERVED_NAMES["references"]:
            raise ValueError("this name stands for the model's own rows: choose another")
        return value

    @field_validator("source")
    @classmethod
    def _source(cls, value: str) -> str:
        if "{" in value.removeprefix("{landing}"):
            raise ValueError("a reference table is one file: no placeholder but {landing}")
        return check_template(value, dated=False)


class FeatureSet(StrictModel):
    """``feature_set.yaml``: features that several models share. ``features.sql`` beside it adds columns to ``rows``."""

    name: Name = Field(description="The folder's name.")
    owner: str = Field(min_length=1, description="Who answers for it.")
    description: str = Field(min_length=1, description="What it adds to a row.")
    references: list[ReferenceTable] = Field([], description="Tables that its SQL joins to.")
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


class DataSpec(StrictModel):
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
    arrival: Literal["none", "wait"] = Field(
        "none",
        description="wait: a nightly run waits until its partition has landed; none: one that is not there fails.",
    )
    arrival_hours: float = Field(
        6,
        gt=0,
        le=72,
        description="With wait: hours after which a partition that did not land is a failure.",
    )
    quarantine_limit: Fraction = Field(
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
        check_columns(self.columns)
        if taken := [k for k in self.key if k in LAKE_COLUMNS]:
            raise ValueError(
                f"key names {taken[0]!r}, which is a column of the lake's own tables: rename it in the feed"
            )
        if twice := [k for k in self.key if self.key.count(k) > 1]:
            raise ValueError(f"key names {twice[0]!r} twice")
        return self


class LabelSpec(StrictModel):
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

    @field_validator("columns")
    @classmethod
    def _columns(cls, value: dict[str, ColumnType]) -> dict[str, ColumnType]:
        check_columns(value)
        return value


class FeaturesSpec(StrictModel):
    """What ``features.sql`` is built upon, and how categories are encoded."""

    sets: list[Name] = Field(
        [], description="Feature sets applied to the rows, in order, before features.sql."
    )
    references: list[ReferenceTable] = Field([], description="Reference tables of this model alone.")
    categorical: list[Column] = Field(
        [], description="Columns of features.sql that get codes, fixed at training."
    )
    unseen: Literal["missing", "stop"] = Field(
        "missing",
        description="What a category unseen in training does: become a missing value, or stop the step.",
    )


class SearchRange(StrictModel):
    """A range, or a choice, that the search draws a parameter from."""

    low: float | None = Field(None, description="Lowest value; with high.")
    high: float | None = Field(None, description="Highest value.")
    log: bool = Field(False, description="Draw evenly between the logarithms.")
    choices: list[float] = Field([], description="The values to choose from, instead of low and high.")

    def holds(self, value: float) -> bool:
        """Whether a value can be drawn."""
        return value in self.choices if self.choices else (self.low or 0) <= value <= (self.high or 0)

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


class SearchSpec(StrictModel):
    """The budget and the space of the hyperparameter search (Optuna)."""

    trials: int = Field(
        0, ge=0, le=1000,
        description="Trials; 0: no search, params are taken as they are. The first ten run side by side where memory "
        "allows.",
    )  # fmt: skip
    minutes: float = Field(10, gt=0, le=1440, description="No trial starts after this many minutes.")
    space: dict[str, SearchRange] = Field(
        {}, description="A range (low, high, log) or choices, by parameter."
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
                    "space.max_bin: cannot be searched, the trials share the binned data; set it in params"
                )
        if self.trials and not self.space:
            raise ValueError(f"trials is {self.trials} but space is empty: name the parameters to search")
        return self


class TrainingSpec(StrictModel):
    """How a challenger is made."""

    engine: Literal["xgboost"] = Field("xgboost", description="What fits the model.")
    objective: str | None = Field(None, description="XGBoost objective; the task's usual one when not given.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="cuda: fail where there is none.")
    window_days: int | None = Field(None, ge=2, le=3650, description="Partition days to train on; none: all.")
    holdout_days: int = Field(
        14, ge=1, le=365, description="The latest labelled days, kept out and judged on."
    )
    rounds: int = Field(300, ge=1, le=10_000, description="Trees at most (a class, for multiclass).")
    early_stopping_rounds: int = Field(
        20, ge=1, le=1000, description="Stop after so many trees without improvement."
    )
    params: dict[str, float] = Field({}, description="XGBoost parameters, each within its bounds.")
    search: SearchSpec = Field(SearchSpec(), description="The hyperparameter search.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Makes a training repeatable.")

    @field_validator("params")
    @classmethod
    def _params(cls, value: dict[str, float]) -> dict[str, float]:
        for name, number in value.items():
            check_parameter(name, number)
        return value

    @model_validator(mode="after")
    def _window(self) -> Self:
        if self.window_days is not None and self.window_days <= self.holdout_days:
            raise ValueError(f"window_days is {self.window_days}, but {self.holdout_days} days of it are kept out "
                             "(holdout_days): nothing is left to train on")  # fmt: skip
        return self


class ScheduleSpec(StrictModel):
    """When DAGs run by themselves (UTC)."""

    data: Cron = Field(
        "0 2 * * *", description="When the night's partition, that of the day before, is fetched."
    )
    monitor: Cron = Field("0 6 * * *", description="When the nights since the last verdict are judged.")
    start: date = Field(description="First partition date.")
    end: date | None = Field(None, description="Last partition date; none: goes on.")

    @field_validator("data", "monitor")
    @classmethod
    def _cron(cls, value: str) -> str:
        from croniter import croniter

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
    """Limits of the tasks of a stage."""

    retries: int = Field(2, ge=0, le=10, description="Times that a failed task is tried again.")
    timeout_minutes: int = Field(60, ge=1, le=2880, description="A task that takes longer is ended.")
    deadline_minutes: int | None = Field(
        None,
        ge=1,
        le=20_160,
        description="Minutes after which a run that is not over is an incident; all that its tasks may take, when not "
        "given.",
    )
