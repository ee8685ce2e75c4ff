"""The section ``alerts`` of ``model.yaml``: who is told of what, and by which channel."""

from __future__ import annotations

import logging
import os
from datetime import date
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from perennial.spec.sections import Name, StrictModel

log = logging.getLogger(__name__)
#: The name of the channel that `PERENNIAL_ALERT_URL` is.
EVERYWHERE = "perennial_alert_url"
Severity = Literal["suspected", "bad"]
#: A signal's name, or a pattern of names (``*`` stands for anything): features, performance, failure:score, deadline:*.
Pattern = Annotated[str, StringConstraints(pattern=r"^[a-z*][a-z0-9_:*.-]*$", max_length=100)]
Address = Annotated[str, StringConstraints(pattern=r"^[^@\s,]+@[^@\s,]+$", max_length=254)]
#: No FIFO topic: those want a group and an order that alerts do not have.
_TOPIC = r"arn:aws[a-z-]*:sns:[a-z0-9-]+:\d{12}:[A-Za-z0-9_-]{1,256}"
#: What each kind must say, and what it may say besides.
_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "slack": ({"channel"}, {"connection"}),
    "email": ({"to"}, {"connection"}),
    "webhook": (set(), {"url", "connection"}),
    "sns": ({"topic"}, {"connection"}),
}
#: Airflow's own names of connections.
_CONNECTIONS = {"slack": "slack_api_default", "email": "smtp_default", "webhook": "http_default", "sns": None}


class Channel(StrictModel):
    """One way to tell people."""

    name: Name = Field(description="What it is called in messages and logs; each channel has its own.")
    kind: Literal["slack", "email", "webhook", "sns"] = Field(
        description="Slack's API, SMTP, an HTTP POST of JSON, or a topic of Amazon SNS."
    )
    connection: str | None = Field(
        None,
        min_length=1,
        description="Airflow connection that holds host and secrets; the provider's default one when not given "
        "(SNS: the environment's own credentials).",
    )
    channel: str | None = Field(None, min_length=1, description="slack: the channel, by name or id.")
    to: list[Address] = Field([], description="email: addresses.")
    url: Annotated[str, StringConstraints(pattern=r"^https?://\S+$")] | None = Field(
        None, description="webhook: where to POST, if no connection says so."
    )
    topic: Annotated[str, StringConstraints(pattern=f"^{_TOPIC}$")] | None = Field(
        None, description="sns: the topic's ARN."
    )
    signals: list[Pattern] = Field(
        ["*"],
        min_length=1,
        description="Signals that it is for; * is a wildcard. approval: a person is asked whether to retrain.",
    )
    severity: Severity = Field("bad", description="The least state that it tells of: suspected, or bad.")
    digest: bool = Field(False, description="Whether it gets the morning's digest, of all models, as well.")

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        needed, possible = _KEYS[self.kind]
        said = {k for k in ("connection", "channel", "to", "url", "topic") if getattr(self, k)}
        if missing := sorted(needed - said):
            raise ValueError(f"kind is {self.kind}: {missing[0]} must be given")
        if odd := sorted(said - needed - possible):
            raise ValueError(f"kind is {self.kind}: {odd[0]} is of another kind of channel")
        if {"url", "connection"} <= said:
            raise ValueError("url and connection both say where to POST: give one")
        return self

    @property
    def conn_id(self) -> str | None:
        """The Airflow connection; None where there is none to look up."""
        return None if self.url else self.connection or _CONNECTIONS[self.kind]

    def wants(self, signal: str, severity: Severity) -> bool:
        """Whether a signal that is so bad is told here."""
        return (severity == "bad" or self.severity == "suspected") and matches(self.signals, signal)


class Mute(StrictModel):
    """Signals that nobody is told of for a while. They are recorded, and listed in the morning's digest."""

    signals: list[Pattern] = Field(
        ["*"], min_length=1, description="Signals that are muted; * is a wildcard."
    )
    until: date = Field(description="The last partition date that is muted.")
    reason: str = Field(min_length=3, max_length=500, description="Why; kept in the ledger.")


class AlertsSpec(StrictModel):
    """Who is told when a signal turns bad, and when it is well again."""

    channels: list[Channel] = Field([], description="Ways to tell people, beside PERENNIAL_ALERT_URL.")
    mute: list[Mute] = Field([], description="Signals that nobody is told of for a while.")

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [EVERYWHERE, *(c.name for c in self.channels)]
        if twice := [n for n in names if names.count(n) > 1]:
            raise ValueError(
                f"channels has the name {twice[0]!r} twice ({EVERYWHERE} stands for PERENNIAL_ALERT_URL)"
            )
        return self

    def all(self) -> list[Channel]:
        """The channels of the spec, and the one of the environment."""
        common = everywhere()
        return [*self.channels, common] if common else self.channels


def everywhere() -> Channel | None:
    """The channel of all models: ``PERENNIAL_ALERT_URL``, a webhook or a topic of SNS; None where that is not set.

    An address that cannot be used is told in the log, without its text: it may hold a secret.
    """
    url = os.environ.get("PERENNIAL_ALERT_URL", "").strip()
    if not url:
        return None
    place = {"kind": "sns", "topic": url} if url.startswith("arn:") else {"kind": "webhook", "url": url}
    try:
        return Channel.model_validate({"name": EVERYWHERE, "digest": True} | place)
    except ValidationError:
        log.warning("PERENNIAL_ALERT_URL is neither an http address nor a topic of SNS: nobody is told there")
        return None


def matches(patterns: list[str], signal: str) -> bool:
    """Whether one of the patterns is, or stands for, the signal."""
    return any(fnmatchcase(signal, p) for p in patterns)
