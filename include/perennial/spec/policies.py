"""The sections of a spec that decide about a model: gate, monitoring, retraining, retention; and what its card says."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import Field, StringConstraints, model_validator

from perennial.core.durations import Duration
from perennial.spec.constraints import (
    MIN_BOOTSTRAP_PARTITIONS,
    MIN_SLICE_ROWS,
    LongDuration,
    OptionalDuration,
    ShortDuration,
    TimeZone,
)
from perennial.spec.gate.fairness import FairnessGate
from perennial.spec.sections import Column, Fraction, StrictModel

__all__ = [
    "AffectedGroup",
    "ApprovalSpec",
    "CardSpec",
    "Freeze",
    "GateSpec",
    "MetricBound",
    "MonitoringSpec",
    "QuietHours",
    "RetentionSpec",
    "RetrainingSpec",
    "RetrainingTrigger",
    "Risk",
    "SliceGate",
    "TrainingWindowName",
]

#: What can trigger a retraining; `RetrainingSpec.triggers` describes each.
RetrainingTrigger = Literal["gain", "performance", "drift", "regular", "worth", "age", "rows", "spec", "code"]


#: The windows that a training can try; `RetrainingSpec.windows` describes each.
TrainingWindowName = Literal["sliding", "expanding", "medium", "short", "since_change"]
#: `RetrainingSpec.triggers` by default; with ``mode: approval`` those without ``regular``.
_TRIGGERS: tuple[RetrainingTrigger, ...] = ("gain", "performance", "drift", "regular")


class MetricBound(StrictModel):
    """The values of a held-out metric with which a challenger may pass the gate."""

    min: float | None = Field(None, allow_inf_nan=False, description="Lowest allowed value.")
    max: float | None = Field(None, allow_inf_nan=False, description="Highest allowed value.")

    @model_validator(mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        # A plain number was once the highest allowed value, which is the wrong way round for a metric such as auc.
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError(
                f"{value:g} does not say whether it is the lowest or the highest allowed value: write "
                f"{{min: {value:g}}} or {{max: {value:g}}}"
            )
        return value

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give min, max, or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min ({self.min:g}) is above max ({self.max:g}): no challenger could pass")
        return self


class SliceGate(StrictModel):
    """How much worse than the champion a challenger may be in a slice of the held-out rows (`monitoring.slices`)."""

    max_worsening: Fraction = Field(
        0.02,
        description="Relative rise of the loss over the champion's that is tolerated in each slice. A challenger is "
        "refused if it is clearly worse by more in any slice: by the whole confidence interval, which holds for all "
        "slices at once.",
    )
    min_rows: int = Field(
        500,
        ge=MIN_SLICE_ROWS,
        description="Held-out rows with which a slice is judged. If no slice has as many, the challenger is refused.",
    )


class ApprovalSpec(StrictModel):
    """Who approves a version before it becomes champion."""

    who: list[str] = Field(
        min_length=1,
        description="Users of Airflow, by name or id, one of whom must approve. Who requested the training cannot.",
    )
    hours: int = Field(
        72, ge=1, le=720, description="Hours to wait for an answer; without one, the version is not promoted."
    )
    reasons: list[str] = Field(
        [], description="Reasons of which an answer names one; any text by default, but not none."
    )


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
        0.95,
        gt=0.5,
        lt=1,
        description="Confidence level of the interval around the difference in loss. A challenger no better than the "
        "champion passes with a probability of about (1 - confidence) / 2.",
    )
    bootstrap_samples: int = Field(
        1000, ge=100, le=20_000, description="Bootstrap samples from which the interval is computed."
    )
    bootstrap_unit: Literal["rows", "partitions"] = Field(
        "rows",
        description="Unit that a bootstrap sample draws. rows: single rows, assumed independent. partitions: whole "
        "ones, for data in which the rows of a partition share conditions (weather, an outage), so that the interval "
        "from rows is too narrow; passing then requires a larger gain, and 20 or more held-out partitions "
        f"(at least {MIN_BOOTSTRAP_PARTITIONS}). Not for ranking.",
    )
    external_change: Literal["refuse", "follow", "restore"] = Field(
        "refuse",
        description="What happens when the champion was moved or removed in MLflow, past the gate. refuse: nothing is "
        "scored until a person rolls back or adopts it. follow: a version that the ledger has a training of is "
        "adopted. restore: the alias is put back, by a step that may move it. Each is recorded in the ledger.",
    )
    beat_baseline: bool = Field(
        True,
        description="Also require that the challenger is clearly better than a constant prediction, and not clearly "
        "worse than a linear model.",
    )
    bounds: dict[str, MetricBound] = Field(
        {},
        description="Lowest or highest allowed value of a held-out metric, by the metric's name: "
        "`{auc: {min: 0.7}, log_loss: {max: 0.4}}`.",
    )
    slices: SliceGate | None = Field(
        None,
        description="Also require that the challenger is not clearly worse than the champion in any slice: for each "
        "frequent value of the columns in monitoring.slices.",
    )
    fairness: FairnessGate | None = Field(
        None,
        description="Also require that groups of the held-out rows are not further apart than this, in what is "
        "predicted for them or in errors; whether or not there is a champion.",
    )
    approval: ApprovalSpec | None = Field(
        None,
        description="Also require that a person approves the version in Airflow, after the gate and the trial. The "
        "ledger has the answer, its reason, and the digest of what the person saw.",
    )


class MonitoringSpec(StrictModel):
    """When a model counts as drifted, and when a signal is bad."""

    window: ShortDuration = Field(
        Duration(28, "day"),
        description="Length of the window compared with the reference, in whole partitions, rounded up. The default of "
        "weeks is 8 weeks, of months 3 months.",
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
        (2, 3),
        description="[n, m]: a model is drifted when n of the last m scheduled windows are suspicious.",
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
        [],
        max_length=10,
        description="Columns of the rows by whose values performance is monitored: the 20 most frequent ones, of "
        "those with enough held-out rows at training.",
    )
    fairness: list[Column] = Field(
        [],
        max_length=10,
        description="Columns of the rows by whose values mean predictions are compared, values as for slices. Not for "
        "task ranking.",
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
    timezone: TimeZone = Field(
        "UTC", description="Time zone of the hours (IANA name, such as Europe/Berlin)."
    )

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
        [*_TRIGGERS],
        description="What triggers a retraining. gain: recent labels indicate that a new model would have a lower "
        "loss. performance: the loss rose. drift: rows drifted and harm the model. regular: the last training is as "
        "long ago as the key regular says; not by default with mode approval. worth: models as old as the champion "
        "had clearly more loss than young ones, by more than min_gain, when that was last measured; not by default. "
        "age: the champion is older than max_age. rows: there are new_rows. spec, code: the champion was trained with "
        "another spec, or other code.",
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
    windows: list[TrainingWindowName] = Field(
        ["sliding", "medium", "short", "since_change"],
        min_length=1,
        description="Training windows to try. sliding: the latest training.window. expanding: all data. short: as many "
        "of the latest partitions as are held out, once there is a champion. medium: three times as many, likewise. "
        "since_change: the data since the detected change. One model is trained on each, within training.window, with "
        "the parameters that were searched on the first; the gate evaluates the one with the lowest loss on the rows "
        "for early stopping. After a change, short and medium are left out, and the held-out rows decide between the "
        "others, with intervals of the gate that are wider for it.",
    )
    trial: OptionalDuration = Field(
        Duration(0, "partition"),
        description="Partitions on which monitoring compares a challenger that passed the gate with the champion, on a "
        "sample of the published rows (shadow trial), such as 14 days or 8 partitions; it replaces the champion if it "
        "was better on them. 0 partitions: no trial, it becomes champion immediately. "
        "With ab_share: partitions after which a trial without a clear result ends.",
    )
    ab_share: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Share of the rows that a challenger on trial serves (A/B trial), by the hash of their key (of "
        "their list, for ranking), until a sequential test of both versions' rows has a result. 0: it serves none.",
    )
    cooldown: OptionalDuration = Field(
        Duration(7, "day"),
        description="Time after a retraining request, or a person's no to one, without another, from partition to "
        "partition. The default of weeks is 4 weeks, of months 3 months. One that only the trigger regular requested "
        "starts no cooldown.",
    )
    regular: ShortDuration = Field(
        Duration(4, "day"),
        description="Trigger regular: time after a training until the next one, whatever the signals. It holds out "
        "half of training.holdout, but 5 partitions at least. The default of weeks is 4 weeks, of months 3 months.",
    )
    budget: int = Field(
        120,
        ge=0,
        le=1000,
        description="Maximum number of retrainings within budget_period; the trigger regular leaves a quarter of it.",
    )
    budget_period: LongDuration = Field(Duration(365, "day"), description="Time that budget applies to.")
    max_age: LongDuration = Field(
        Duration(180, "day"), description="Trigger age: a champion older than this is retrained."
    )
    abandoned_after: ShortDuration = Field(
        Duration(7, "day"),
        description="Time after which an unfinished retraining counts as abandoned. The default of months is 1 month.",
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

    @model_validator(mode="before")
    @classmethod
    def _triggers_to_approve(cls, value: Any) -> Any:
        # Nobody wants to be asked every few days.
        if isinstance(value, dict) and value.get("mode") == "approval" and "triggers" not in value:
            return value | {"triggers": [t for t in _TRIGGERS if t != "regular"]}
        return value


#: A sentence, or a few, of a model's card; or the address of a page that says it.
Prose = Annotated[str, StringConstraints(min_length=1, max_length=2000)]


class Risk(StrictModel):
    """Something that can go wrong for people when the model is used."""

    risk: Prose = Field(description="What can happen.")
    mitigation: Prose | None = Field(None, description="What is done about it.")


class AffectedGroup(StrictModel):
    """A group of people that the model's use can put at a disadvantage."""

    group: Prose = Field(description="Who they are.")
    benefits: Prose | None = Field(None, description="What they gain by the model's use.")
    harms: Prose | None = Field(None, description="What they may lose by it.")
    mitigation: Prose | None = Field(None, description="What is done about that.")


class CardSpec(StrictModel):
    """What people have to say about a model, for its card; the rest of the card writes itself."""

    license: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$",
        description="License of the model, an identifier of the Hugging Face Hub such as apache-2.0 or other.",
    )
    provider: Prose | None = Field(None, description="Legal name and address of the provider.")
    intended_use: list[Prose] = Field([], description="What its predictions are for.")
    users: list[Prose] = Field([], description="Who uses them.")
    out_of_scope: list[Prose] = Field([], description="Uses that it is not made for.")
    limitations: list[Prose] = Field([], description="Where it is known to be weak.")
    tradeoffs: list[Prose] = Field([], description="What was given up for what, such as accuracy for speed.")
    risks: list[Risk] = Field([], description="Risks for health, safety and fundamental rights.")
    groups: list[AffectedGroup] = Field(
        [], description="Groups of people whom its use can put at a disadvantage."
    )
    oversight: Prose | None = Field(None, description="How people oversee it, and can stop or overrule it.")
    deployment: Prose | None = Field(
        None, description="In which form it is used, and which systems its predictions go to."
    )
    instructions: Prose | None = Field(None, description="Instructions for those who use its predictions.")
    data_origin: Prose | None = Field(
        None, description="How the data were collected, chosen, labelled and cleaned before they arrive."
    )
    metric_choice: Prose | None = Field(None, description="Why the gate's metric fits the purpose.")
    security: Prose | None = Field(None, description="Measures of cybersecurity around it.")
    risk_management: Prose | None = Field(None, description="The risk management system.")
    standards: list[Prose] = Field([], description="Standards that were applied.")
    declaration: Prose | None = Field(None, description="The EU declaration of conformity.")
    post_market: Prose | None = Field(None, description="The plan for monitoring once it is in use.")


class RetentionSpec(StrictModel):
    """How long what is stored of a model is kept; the DAG ``perennial.retention`` deletes the rest."""

    rows: LongDuration | None = Field(
        None,
        description="Age of a partition from which its published rows, labels and records in quarantine are deleted. "
        "They are kept for ever when not given, and while a version in use was trained or evaluated on them.",
    )
    predictions: LongDuration | None = Field(
        None, description="The same for predictions in the lake; a database's table is its owner's."
    )
    served: LongDuration | None = Field(
        None, description="The same for the logged features of a sample of the scored rows."
    )
    reports: LongDuration | None = Field(
        None,
        description="The same for reports, data docs and data profiles; not for the training report of a version in "
        "use.",
    )
    versions: int | None = Field(
        None,
        ge=1,
        description="Number of the newest model versions that are kept, besides those in use: champion, the version "
        "that a rollback returns to, a challenger on trial, and each with an alias. All when not given.",
    )
    table_history: LongDuration = Field(
        Duration(730, "day"),
        description="Age from which older table versions are deleted, unless a version in use was trained on them. "
        "A version that is not in use can then no longer be reproduced.",
    )
