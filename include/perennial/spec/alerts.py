"""The section ``alerts`` of ``model.yaml``: which signals are sent to which channel."""

from __future__ import annotations

import logging
import os
from datetime import date
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from perennial.spec.sections import Name, StrictModel

__all__ = [
    "COMMON_CHANNEL",
    "AlertsSpec",
    "Channel",
    "Mute",
    "Severity",
    "common_channel",
    "matches",
]

log = logging.getLogger(__name__)
#: The name of the channel that `PERENNIAL_ALERT_URL` defines.
COMMON_CHANNEL = "perennial_alert_url"
Severity = Literal["suspected", "bad"]
#: A signal's name, or a pattern of names with the wildcard ``*``: features, performance, failure:score, deadline:*.
Pattern = Annotated[str, StringConstraints(pattern=r"^[a-z*][a-z0-9_:*.-]*$", max_length=100)]
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
        description="Signals to send; * is a wildcard. approval: a retraining waits for a person's approval.",
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

    def accepts(self, signal: str, severity: Severity) -> bool:
        """Whether a signal of this severity is sent to this channel."""
        return (severity == "bad" or self.severity == "suspected") and matches(self.signals, signal)


class Mute(StrictModel):
    """Signals that are not sent for a while. They are still recorded, and listed in the daily summary."""

    signals: list[Pattern] = Field(
        ["*"], min_length=1, description="Signals that are muted; * is a wildcard."
    )
    until: date = Field(description="The last partition date that is muted.")
    reason: str = Field(min_length=3, max_length=500, description="Why; recorded in the ledger.")


class AlertsSpec(StrictModel):
    """Where to send a message when a signal turns bad, and when it recovers."""

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
