"""The section ``alerts`` of ``model.yaml``: which signals, and which decisions, are sent to which channel."""

from __future__ import annotations

import difflib
import logging
import os
from datetime import UTC, date, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from perennial.spec.sections import Name, StrictModel

__all__ = [
    "COMMON_CHANNEL",
    "MAX_MUTE_DAYS",
    "SIGNALS",
    "AlertsSpec",
    "Channel",
    "DecisionName",
    "Mute",
    "Severity",
    "common_channel",
    "matches",
    "signal_measure",
    "signal_title",
]

log = logging.getLogger(__name__)
#: The name of the channel that `PERENNIAL_ALERT_URL` defines.
COMMON_CHANNEL = "perennial_alert_url"
Severity = Literal["suspected", "bad"]
#: Decisions that a channel can be told of.
DecisionName = Literal[
    "approval", "retraining", "declined", "rejection", "trial", "promotion", "rollback", "external_change"
]
#: Those that every channel for all signals is told of: a question, and what changes the champion.
DEFAULT_DECISIONS: tuple[DecisionName, ...] = ("approval", "promotion", "rollback")
#: Tasks whose failure is a signal.
_TASKS = (
    "approve_promotion", "approve_retraining", "await_partition", "await_quiet_hours", "conclude_trial", "data",
    "decide", "find_scores", "monitor", "notify", "promote", "promote_after_trial", "publish_predictions",
    "request_retraining", "rescore", "rollback", "score", "split_range", "train",
)  # fmt: skip
#: What each signal of monitoring and of verification measures, in a few words, for everything that people read.
_MEASURES = {
    "attributions": "share that moved to other features",
    "backlog": "partitions that are due and not done",
    "calibration": "label minus prediction",
    "categories": "highest share unseen at training",
    "champion": "whether only promotion and rollback changed it",
    "estimated": "loss that the model expects",
    "fairness": "distance between the groups' mean predictions",
    "features": "drift of all features together",
    "freshness": "partitions that are missing",
    "gain": "loss that a correction from recent labels saves",
    "integrity": "whether what is stored is what was written",
    "labels": "share that is missing or unexpected",
    "nulls": "highest share of a column",
    "performance": "loss above what the model expects",
    "prediction": "PSI of the predictions",
    "reproduction": "whether the champion can be trained again",
    "rollback_target": "whether the version to roll back to works",
    "skew": "features that differ from those of the training code",
    "slices": "loss above what the model expects, worst slice",
    "volume": "times more or fewer rows than usual",
}
#: Every signal of which there can be an incident: of monitoring, of verification, of tasks and of runs.
SIGNALS = (
    *_MEASURES,
    *(f"failure:{task}" for task in _TASKS),
    *(f"deadline:{stage}" for stage in ("data", "monitor", "score", "train")),
)
#: Signals of the DAG of a feature table, whose name follows.
_OF_TABLES = ("failure:features.", "deadline:features.")
#: Most days that a mute lasts, so that none is forgotten for ever.
MAX_MUTE_DAYS = 366


def signal_measure(signal: str) -> str:
    """What a signal measures, in a few words; empty if its name is not known, as in a lake of a later release."""
    kind, _, what = signal.partition(":")
    if signal.startswith(_OF_TABLES):
        outcome = "is late" if kind == "deadline" else "fails"
        return f"whether the computation of feature table {what.partition('.')[2]} {outcome}"
    if kind == "failure" and what:
        return f"whether the task {what} fails"
    if kind == "deadline" and what:
        return f"whether the stage {what} is late"
    return _MEASURES.get(signal, "")


def signal_title(signal: str) -> str:
    """The heading of a signal: its name, and what it measures."""
    measure = signal_measure(signal)
    return f"{signal[:1].upper()}{signal[1:]}: {measure}" if measure else signal


def _check_pattern(pattern: str) -> str:
    """Refuse a pattern that matches no signal: it would be ignored."""
    if pattern == "approval":  # was a signal in earlier versions
        raise ValueError("approval is a decision, not a signal: write decisions: [approval]")
    if not pattern.startswith(_OF_TABLES) and not any(fnmatchcase(signal, pattern) for signal in SIGNALS):
        close = difflib.get_close_matches(pattern, SIGNALS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"the signals are: {', '.join(SIGNALS)}"
        raise ValueError(f"no signal is called {pattern!r}; {hint}")
    return pattern


def _check_until(until: date) -> date:
    """Refuse a mute that nobody would live to see end, such as one with a mistyped year."""
    latest = datetime.now(UTC).date() + timedelta(days=MAX_MUTE_DAYS)
    if until > latest:
        raise ValueError(f"a mute lasts {MAX_MUTE_DAYS} days at most: until {latest}; renew it then")
    return until


#: A signal's name, or a pattern of names with the wildcard ``*``: features, performance, failure:score, deadline:*.
Pattern = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z*][a-z0-9_:*.-]*$", max_length=100),
    AfterValidator(_check_pattern),
]
Address = Annotated[str, StringConstraints(pattern=r"^[^@\s,]+@[^@\s,]+$", max_length=254)]
#: No FIFO topics: they require a message group and an order, which alerts do not have.
_TOPIC = r"arn:aws[a-z-]*:sns:[a-z0-9-]+:\d{12}:[A-Za-z0-9_-]{1,256}"
#: Keys that each kind of channel requires, and further keys that it allows.
_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "slack": ({"channel"}, {"connection"}),
    "email": ({"to"}, {"connection"}),
    "webhook": (set(), {"url", "connection"}),
    "sns": ({"topic"}, {"connection"}),
}


class Channel(StrictModel):
    """Where alerts are sent."""

    name: Name = Field(description="Name in messages and logs; unique within the model.")
    kind: Literal["slack", "email", "webhook", "sns"] = Field(
        description="Slack's API, SMTP, an HTTP POST of JSON, or an Amazon SNS topic."
    )
    connection: str | None = Field(
        None,
        min_length=1,
        description="Airflow connection that holds host and secrets; the provider's default one when not given "
        "(sns: the credentials of the environment).",
    )
    channel: str | None = Field(None, min_length=1, description="slack: the channel, by name or id.")
    to: list[Address] = Field([], description="email: addresses.")
    url: Annotated[str, StringConstraints(pattern=r"^https?://\S+$")] | None = Field(
        None, description="webhook: URL to POST to, when no connection holds it."
    )
    topic: Annotated[str, StringConstraints(pattern=f"^{_TOPIC}$")] | None = Field(
        None, description="sns: the topic's ARN."
    )
    signals: list[Pattern] = Field(
        ["*"],
        min_length=1,
        description="Signals to send; * is a wildcard.",
    )
    decisions: list[DecisionName] | None = Field(
        None,
        description="Decisions to send. approval: a person is asked whether to retrain or to promote. retraining: one "
        "was requested. declined: a person declined a retraining or a promotion, or did not answer. "
        "rejection: the gate rejected a new version. trial: one began or failed. promotion, rollback: "
        "another version became champion. external_change: the champion was changed in MLflow. Default: "
        "approval, promotion and rollback; none if signals are selected.",
    )
    severity: Severity = Field("bad", description="Lowest severity that is sent: suspected or bad.")
    daily_summary: bool = Field(False, description="Also send the daily summary of all models.")

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        required, optional = _KEYS[self.kind]
        given = {k for k in ("connection", "channel", "to", "url", "topic") if getattr(self, k)}
        if missing := sorted(required - given):
            raise ValueError(f"kind is {self.kind}: {missing[0]} must be given")
        if other := sorted(given - required - optional):
            raise ValueError(f"kind is {self.kind}: {other[0]} belongs to another kind of channel")
        if {"url", "connection"} <= given:
            raise ValueError("url and connection both name the address: give one of them")
        return self

    def announces(self, decision: DecisionName) -> bool:
        """Whether a decision is sent to this channel."""
        if self.decisions is not None:
            return decision in self.decisions
        return decision in DEFAULT_DECISIONS and self.signals == ["*"]

    def accepts(self, signal: str, severity: Severity) -> bool:
        """Whether a signal of this severity is sent to this channel."""
        return (severity == "bad" or self.severity == "suspected") and matches(self.signals, signal)


class Mute(StrictModel):
    """Signals that are not sent for a while. They are still recorded, and listed in the daily summary."""

    signals: list[Pattern] = Field(
        ["*"], min_length=1, description="Signals that are muted; * is a wildcard."
    )
    until: Annotated[date, AfterValidator(_check_until)] = Field(
        description="The last partition date that is muted; within a year."
    )
    reason: Annotated[str, StringConstraints(strip_whitespace=True)] = Field(
        min_length=3, max_length=500, description="Why; recorded in the ledger."
    )


class AlertsSpec(StrictModel):
    """Where to send a message when a signal turns bad, when it recovers, and when something is decided."""

    channels: list[Channel] = Field([], description="Channels, in addition to PERENNIAL_ALERT_URL.")
    mute: list[Mute] = Field([], description="Signals that are not sent for a while.")

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [COMMON_CHANNEL, *(c.name for c in self.channels)]
        if duplicates := [n for n in names if names.count(n) > 1]:
            raise ValueError(
                f"channels has the name {duplicates[0]!r} twice ({COMMON_CHANNEL} stands for PERENNIAL_ALERT_URL)"
            )
        return self

    def all_channels(self) -> list[Channel]:
        """The channels of the spec, and the common channel."""
        common = common_channel()
        return [*self.channels, common] if common else self.channels


def common_channel() -> Channel | None:
    """The channel of all models, ``PERENNIAL_ALERT_URL``; None if it is not set or invalid.

    It is a webhook or an SNS topic. An invalid address is not logged, because it may contain a secret.
    """
    url = os.environ.get("PERENNIAL_ALERT_URL", "").strip()
    if not url:
        return None
    address = {"kind": "sns", "topic": url} if url.startswith("arn:") else {"kind": "webhook", "url": url}
    try:
        return Channel.model_validate({"name": COMMON_CHANNEL, "daily_summary": True} | address)
    except ValidationError:
        log.warning(
            "PERENNIAL_ALERT_URL is neither an http address nor an SNS topic, so it gets no alerts: correct it"
        )
        return None


def matches(patterns: list[str], signal: str) -> bool:
    """Whether one of the patterns matches the signal."""
    return any(fnmatchcase(signal, p) for p in patterns)
