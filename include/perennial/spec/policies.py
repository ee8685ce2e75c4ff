"""The sections of a spec that decide about a model: what it must show, what is watched, when it is retrained."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from perennial.spec.constraints import MIN_BASELINE_NIGHTS, MIN_DAYS
from perennial.spec.sections import Column, Fraction, StrictModel


class GateSpec(StrictModel):
    """What a challenger must show before it becomes champion."""

    metric: str | None = Field(
        None, description="Loss judged on the held-out rows; the task's first when not given."
    )
    margin: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Relative improvement over the champion that the confidence interval must lie above."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Of the interval of the difference in loss.")
    resamples: int = Field(
        1000, ge=100, le=20_000, description="Bootstrap samples that the interval rests on."
    )
    resample: Literal["rows", "days"] = Field(
        "rows",
        description="What a bootstrap sample draws. rows: each row is a case of its own. days: whole partitions, "
        "where the rows of a day share their luck (weather, an outage) and the interval of rows is too narrow; larger "
        f"gains are needed to pass then, and 20 held-out days or more ({MIN_DAYS} at least). Not for ranking.",
    )
    beat_baseline: bool = Field(
        True, description="Also clearly better than a constant, and not clearly worse than a linear model."
    )
    bounds: dict[str, float] = Field(
        {}, description="Highest value allowed of a held-out metric, by its name."
    )


class MonitoringSpec(StrictModel):
    """When a model counts as drifted."""

    window_days: int = Field(28, ge=1, le=366, description="Days that are compared with the reference.")
    reference: Literal["training", "rolling", "last_year"] = Field(
        "training",
        description="What the window's rows are compared with: those of training, the window before it, or the same "
        "weeks of the year before, where the rows follow the season.",
    )
    min_rows: int = Field(1000, ge=10, description="Fewer rows than this leave a column undetermined.")
    psi_threshold: float = Field(
        0.2, gt=0, le=10, description="Population stability index above which a column drifts."
    )
    noise_floor: bool = Field(
        True, description="A column drifts only beyond what windows inside its own training data showed."
    )
    null_jump: Fraction = Field(0.1, description="Rise of a column's null share that is drift by itself.")
    drift_share: Fraction = Field(
        0.1, description="Importance-weighted share of drifted columns that is suspicious."
    )
    judged_share: Fraction = Field(
        0.5, description="Weight that must be judged, or the verdict is undetermined."
    )
    persistence: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1, le=52)]] = Field(
        (2, 3), description="n of the last m verdicts suspicious: drifted."
    )
    performance_drop: float = Field(
        0.03, gt=0, le=10, description="Relative rise of the gate's loss that does no harm yet."
    )
    false_alarms_a_year: float = Field(
        2, gt=0, le=100, description="Budget of false alarms, all followed numbers together."
    )
    slices: list[Column] = Field(
        [], max_length=10, description="Columns of the rows, by each value of which performance is followed."
    )
    fairness: list[Column] = Field(
        [], max_length=10, description="Columns of the rows whose groups must be treated alike."
    )
    fairness_gap: Fraction = Field(
        0.05,
        description="Rise of the distance between groups that does no harm: in probability, or in standard deviations "
        "of the label.",
    )
    new_categories: Fraction = Field(
        0.05, description="Rise of a night's share of categories unseen at training that is bad."
    )
    volume_factor: float = Field(
        2, gt=1, le=1000, description="A night this many times larger or smaller than any quiet one is bad."
    )
    report_rows: int = Field(5000, ge=100, le=100_000, description="Rows a side in Evidently's picture.")

    @model_validator(mode="after")
    def _n_of_m(self) -> Self:
        if self.persistence[0] > self.persistence[1]:
            raise ValueError(f"persistence is {list(self.persistence)}: the first must not exceed the second")
        return self


class Freeze(StrictModel):
    """A span of dates, both included."""

    start: date = Field(description="First date.")
    end: date = Field(description="Last date.")
    reason: str = Field("", description="Why; told with each retraining that it forbids.")

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.end < self.start:
            raise ValueError(f"end {self.end} is before start {self.start}")
        return self


class QuietHours(StrictModel):
    """Hours of each day, over midnight where the first is the later one."""

    from_hour: int = Field(ge=0, le=23, description="First hour.")
    to_hour: int = Field(ge=0, le=23, description="Hour at which they end.")
    timezone: str = Field("UTC", description="Whose hours (IANA name, as Europe/Berlin).")

    @field_validator("timezone")
    @classmethod
    def _timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ValueError, OSError, ZoneInfoNotFoundError):
            raise ValueError("not a time zone: give a name such as UTC or Europe/Berlin") from None
        return value

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.from_hour == self.to_hour:
            raise ValueError(f"from_hour and to_hour are both {self.to_hour}: when would a retraining begin?")
        return self

    def end_of(self, now: datetime) -> datetime | None:
        """When the quiet hours that hold at ``now`` end; None: none hold."""
        local = now.astimezone(ZoneInfo(self.timezone))
        over_midnight = self.from_hour > self.to_hour
        late, early = local.hour >= self.from_hour, local.hour < self.to_hour
        if not ((late or early) if over_midnight else (late and early)):
            return None
        day = local.date() + timedelta(days=over_midnight and late)
        return datetime.combine(day, time(self.to_hour), local.tzinfo).astimezone(UTC)


class RetrainingSpec(StrictModel):
    """When a verdict leads to a retraining."""

    on: list[Literal["value", "performance", "drift", "age", "rows", "spec", "code"]] = Field(
        ["value", "performance", "drift"],
        description="What asks for one: recent labels promise a gain; the loss rose; rows drifted and it harms; the "
        "champion is old; many new rows; another spec, or other code, than the champion was trained by.",
    )
    mode: Literal["auto", "ask"] = Field(
        "auto",
        description="ask: a person approves in Airflow before a retraining that was decided upon starts.",
    )
    answer_hours: int = Field(
        72, ge=1, le=720, description="With mode ask: hours after which no answer is a no."
    )
    worth: float = Field(
        0.01, gt=0, le=1, description="Relative gain in loss below which a retraining does not pay."
    )
    windows: list[Literal["sliding", "expanding", "since_change"]] = Field(
        ["sliding", "since_change"],
        min_length=1,
        description="What a retraining learns from: the latest training.window_days, all, or what came since the "
        "detected change. One model is made of each; the gate takes the one that is best on the same rows.",
    )
    shadow_nights: int = Field(
        0,
        ge=0,
        le=90,
        description="Nights that a challenger which passed the gate scores unseen, beside the champion, before it "
        "takes over if it was better on them; 0: it takes over at once. With split: the nights after which it is given "
        "up for want of an answer.",
    )
    split: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Share of the rows, by the hash of their key (of their list, for ranking), that such a challenger "
        "serves instead of staying unseen, until a sequential test of both versions' rows has an answer; 0: none.",
    )
    cooldown_days: int = Field(
        7, ge=0, le=365, description="Days after a retraining in which none is asked for."
    )
    budget: int = Field(12, ge=0, le=1000, description="Retrainings at most within budget_days.")
    budget_days: int = Field(365, ge=1, le=3650, description="The days that budget is for.")
    max_age_days: int = Field(
        180, ge=1, le=3650, description="With 'age': a champion older than this is retrained."
    )
    lost_after_days: int = Field(
        7, ge=1, le=365, description="A retraining that did not end by then counts as lost."
    )
    new_rows: float = Field(
        0.5,
        gt=0,
        le=100,
        description="With 'rows': new rows, as a share of those that the champion learned from.",
    )
    gpu_hours: float | None = Field(
        None, ge=0, description="GPU hours that retrainings may take within 30 days."
    )
    freeze: list[Freeze] = Field([], description="Partition dates on which no retraining is asked for.")
    quiet_hours: QuietHours | None = Field(
        None, description="Hours in which a retraining that was asked for waits before it begins."
    )

    @model_validator(mode="after")
    def _answered(self) -> Self:
        if self.split and self.shadow_nights < MIN_BASELINE_NIGHTS:
            raise ValueError(
                f"split is {self.split:g} and shadow_nights {self.shadow_nights}: a split is judged on "
                f"{MIN_BASELINE_NIGHTS} nights "
                f"or more, set shadow_nights to {MIN_BASELINE_NIGHTS} at least, better to some weeks"
            )
        return self
