"""The sections of a spec that decide about a model: the gate, monitoring, retraining."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from perennial.spec.constraints import MIN_BASELINE_PARTITIONS, MIN_BOOTSTRAP_DAYS
from perennial.spec.sections import Column, Fraction, StrictModel

__all__ = ["Freeze", "GateSpec", "MonitoringSpec", "QuietHours", "RetrainingSpec", "RetrainingTrigger"]

#: What can trigger a retraining; `RetrainingSpec.triggers` describes each.
RetrainingTrigger = Literal["gain", "performance", "drift", "age", "rows", "spec", "code"]


class GateSpec(StrictModel):
    """What a challenger must show before it becomes champion."""

    metric: str | None = Field(
        None, description="Loss compared on the held-out rows; the task's first metric when not given."
    )
    margin: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="Relative improvement over the champion that the whole confidence interval must exceed.",
    )
    confidence: float = Field(
        0.95, gt=0.5, lt=1, description="Confidence level of the interval around the difference in loss."
    )
    bootstrap_samples: int = Field(
        1000, ge=100, le=20_000, description="Bootstrap samples from which the interval is computed."
    )
    bootstrap_unit: Literal["rows", "days"] = Field(
        "rows",
        description="Unit that a bootstrap sample draws. rows: single rows, assumed independent. days: whole "
        "partitions, for data in which the rows of a day share conditions (weather, an outage), so that the interval "
        "from rows is too narrow; passing then requires a larger gain, and 20 or more held-out days "
        f"(at least {MIN_BOOTSTRAP_DAYS}). Not for ranking.",
    )
    beat_baseline: bool = Field(
        True,
        description="Also require that the challenger is clearly better than a constant prediction, and not clearly "
        "worse than a linear model.",
    )
    bounds: dict[str, float] = Field(
        {}, description="Highest allowed value of a held-out metric, by the metric's name."
    )


class MonitoringSpec(StrictModel):
    """When a model counts as drifted, and when a signal is bad."""

    window_days: int = Field(
        28, ge=1, le=366, description="Length in days of the window compared with the reference."
    )
    reference: Literal["training", "rolling", "last_year"] = Field(
        "training",
        description="What the window's rows are compared with. training: the champion's training rows. rolling: the "
        "window before. last_year: the same weeks of the year before, for seasonal data.",
    )
    min_rows: int = Field(
        1000, ge=10, description="Rows that a column needs in the window; with fewer it is undetermined."
    )
    psi_threshold: float = Field(
        0.2, gt=0, le=10, description="Population stability index above which a column counts as drifted."
    )
    noise_floor: bool = Field(
        True,
        description="A column counts as drifted only if it differs more than windows within the training data "
        "differ among themselves.",
    )
    null_jump: Fraction = Field(
        0.1, description="Rise of a column's share of nulls that counts as drift, whatever its PSI."
    )
    drift_share: Fraction = Field(
        0.1, description="Importance-weighted share of drifted columns at which a verdict is suspicious."
    )
    min_evaluated_share: Fraction = Field(
        0.5,
        description="Importance-weighted share of columns that must be evaluated; below it the verdict is "
        "undetermined.",
    )
    persistence: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1, le=52)]] = Field(
        (2, 3), description="[n, m]: a model is drifted when n of its last m verdicts are suspicious."
    )
    performance_drop: float = Field(
        0.03, gt=0, le=10, description="Relative rise of the gate's loss that is tolerated."
    )
    false_alarms_per_year: float = Field(
        2,
        gt=0,
        le=100,
        description="Budget of false alarms, shared by all signals that are tested for a change.",
    )
    slices: list[Column] = Field(
        [], max_length=10, description="Columns of the rows by whose values performance is monitored."
    )
    fairness: list[Column] = Field(
        [], max_length=10, description="Columns of the rows whose groups must be treated equally."
    )
    fairness_gap: Fraction = Field(
        0.05,
        description="Rise of the difference between groups that is tolerated: in probability, or in standard "
        "deviations of the label.",
    )
    new_categories: Fraction = Field(
        0.05, description="Rise of a partition's share of categories unseen in training that is bad."
    )
    volume_factor: float = Field(
        2,
        gt=1,
        le=1000,
        description="A partition is bad if it is this many times larger, or smaller, than any of the baseline.",
    )
    report_rows: int = Field(
        5000,
        ge=100,
        le=100_000,
        description="Rows of the window, and of the reference, in Evidently's report.",
    )

    @model_validator(mode="after")
    def _check_persistence(self) -> Self:
        if self.persistence[0] > self.persistence[1]:
            raise ValueError(f"persistence is {list(self.persistence)}: the first must not exceed the second")
        return self


class Freeze(StrictModel):
    """A range of dates, both included."""

    start: date = Field(description="First date.")
    end: date = Field(description="Last date.")
    reason: str = Field("", description="Why; shown with each retraining that it prevents.")

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.end < self.start:
            raise ValueError(f"end {self.end} is before start {self.start}")
        return self


class QuietHours(StrictModel):
    """Hours of each day, past midnight if the first hour is later than the last."""

    from_hour: int = Field(ge=0, le=23, description="First hour.")
    to_hour: int = Field(ge=0, le=23, description="Hour at which they end.")
    timezone: str = Field("UTC", description="Time zone of the hours (IANA name, such as Europe/Berlin).")

    @field_validator("timezone")
    @classmethod
    def _timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ValueError, OSError, ZoneInfoNotFoundError):
            raise ValueError("not a time zone: give a name such as UTC or Europe/Berlin") from None
        return value

    @model_validator(mode="after")
    def _check_hours(self) -> Self:
        if self.from_hour == self.to_hour:
            raise ValueError(
                f"from_hour and to_hour are both {self.to_hour}: no retraining could start; choose different hours"
            )
        return self

    def end_of(self, moment: datetime) -> datetime | None:
        """The end (UTC) of the quiet hours that ``moment`` lies in; None if it lies in none."""
        local = moment.astimezone(ZoneInfo(self.timezone))
        over_midnight = self.from_hour > self.to_hour
        after_start, before_end = local.hour >= self.from_hour, local.hour < self.to_hour
        if not ((after_start or before_end) if over_midnight else (after_start and before_end)):
            return None
        day = local.date() + timedelta(days=over_midnight and after_start)
        return datetime.combine(day, time(self.to_hour), local.tzinfo).astimezone(UTC)


class RetrainingSpec(StrictModel):
    """When a verdict leads to a retraining."""

    triggers: list[RetrainingTrigger] = Field(
        ["gain", "performance", "drift"],
        description="What triggers a retraining. gain: recent labels indicate that a new model would have a lower "
        "loss. performance: the loss rose. drift: rows drifted and harm the model. age: the champion is older than "
        "max_age_days. "
        "rows: there are new_rows. spec, code: the champion was trained with another spec, or other code.",
    )
    mode: Literal["auto", "approval"] = Field(
        "auto",
        description="auto: a retraining starts once it is decided. approval: a person approves it in Airflow first.",
    )
    approval_hours: int = Field(
        72,
        ge=1,
        le=720,
        description="mode approval: hours to wait for an answer; without one, the retraining is rejected.",
    )
    min_gain: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Relative reduction of the loss below which retraining is not worthwhile.",
    )
    windows: list[Literal["sliding", "expanding", "since_change"]] = Field(
        ["sliding", "since_change"],
        min_length=1,
        description="Training windows to try. sliding: the latest training.window_days. expanding: all data. "
        "since_change: the data since the detected change. One model is trained on each; the gate evaluates the one "
        "with the lowest loss on the same rows.",
    )
    trial_days: int = Field(
        0,
        ge=0,
        le=90,
        description="Days on which a challenger that passed the gate scores together with the champion without serving "
        "(shadow trial); it replaces the champion if it was better on them. 0: no trial, it becomes champion "
        "immediately. "
        "With ab_share: days after which a trial without a clear result ends.",
    )
    ab_share: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Share of the rows that a challenger on trial serves (A/B trial), by the hash of their key (of "
        "their list, for ranking), until a sequential test of both versions' rows has a result. 0: it serves none.",
    )
    cooldown_days: int = Field(
        7, ge=0, le=365, description="Days after a retraining request on which no other is requested."
    )
    budget: int = Field(12, ge=0, le=1000, description="Maximum number of retrainings within budget_days.")
    budget_days: int = Field(365, ge=1, le=3650, description="Days that budget applies to.")
    max_age_days: int = Field(
        180, ge=1, le=3650, description="Trigger age: a champion older than this is retrained."
    )
    abandoned_after_days: int = Field(
        7, ge=1, le=365, description="Days after which an unfinished retraining counts as abandoned."
    )
    new_rows: float = Field(
        0.5,
        gt=0,
        le=100,
        description="Trigger rows: new rows, as a share of those that the champion was trained on.",
    )
    gpu_hours: float | None = Field(
        None, ge=0, description="GPU hours that retrainings may use within 30 days; unlimited when not given."
    )
    freeze: list[Freeze] = Field([], description="Partition dates on which no retraining is requested.")
    quiet_hours: QuietHours | None = Field(
        None, description="Hours in which a requested retraining waits before it starts."
    )

    @model_validator(mode="after")
    def _check_trial(self) -> Self:
        if self.ab_share and self.trial_days < MIN_BASELINE_PARTITIONS:
            raise ValueError(
                f"ab_share is {self.ab_share:g} and trial_days {self.trial_days}: an A/B trial needs at least "
                f"{MIN_BASELINE_PARTITIONS} days; set trial_days to {MIN_BASELINE_PARTITIONS} or more, better to "
                "some weeks"
            )
        return self
