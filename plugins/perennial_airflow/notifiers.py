"""Delivers messages by the notifiers of Airflow's own providers: Slack, SMTP, HTTP, SNS.

They are not called but asked to ``notify``: to be called, they would take a message that holds ``{{`` for a template,
and keep an error to themselves.
"""

from __future__ import annotations

import html
import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from perennial.spec.alerts import Channel

#: Seconds that a service may take to answer.
TIMEOUT = 5
log = structlog.get_logger("perennial.alerts")
_silent = logging.getLogger("perennial.silent")
_silent.disabled = True


@dataclass(frozen=True)
class Message:
    """What is told.

    Attributes:
        title: one line. text: all of it, for people. facts: small and JSON-able, for machines.
    """

    title: str
    text: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def json(self) -> dict[str, Any]:
        """Title, text and facts together."""
        return json.loads(json.dumps({"title": self.title, "text": self.text} | self.facts, default=str))  # type: ignore[no-any-return]


def deliver(channel: Channel, message: Message) -> bool:
    """Tell one channel; False, and a line in the log, where that fails.

    An address may hold a secret, and so may an error's text: neither is logged.
    """
    try:
        _MAKE[channel.kind](channel, message).notify({})
        return True
    except Exception as error:  # of a client, its configuration or the service: none may add a failure
        log.warning(
            "a notice was not delivered", channel=channel.name, kind=channel.kind, error=type(error).__name__
        )
        return False


def _slack(channel: Channel, message: Message) -> Any:
    from airflow.providers.slack.notifications.slack import SlackNotifier

    text = html.escape(message.text, quote=False)  # what Slack wants escaped is just what HTML does
    return SlackNotifier(
        slack_conn_id=channel.conn_id, channel=channel.channel, text=text, username="Perennial", timeout=TIMEOUT,
        unfurl_links=False, unfurl_media=False,
    )  # fmt: skip


def _email(channel: Channel, message: Message) -> Any:
    from airflow.providers.smtp.hooks.smtp import SmtpHook
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier

    class Impatient(SmtpHook):
        """The provider tries five more times, each for as long as the connection says."""

        smtp_retry_limit = 0
        timeout = TIMEOUT

    notifier = SmtpNotifier(
        smtp_conn_id=channel.conn_id,
        to=channel.to,
        subject=message.title,
        html_content=f"<pre>{html.escape(message.text)}</pre>",
    )
    notifier.hook = Impatient(smtp_conn_id=channel.conn_id or SmtpHook.default_conn_name)
    return notifier


def _webhook(channel: Channel, message: Message) -> Any:
    from airflow.providers.http.hooks.http import HttpHook
    from airflow.providers.http.notifications.http import HttpNotifier
    from airflow.sdk import Connection

    class Discreet(HttpHook):
        """Says nothing of the address, which the provider writes into the log where it cannot be reached."""

        log = _silent

        @classmethod
        def get_connection(cls, conn_id: str) -> Any:
            if channel.url:
                return Connection(conn_id=conn_id, conn_type="http", host=channel.url)
            return super().get_connection(conn_id)

    named = channel.conn_id or channel.name
    notifier = HttpNotifier(http_conn_id=named, json=message.json, extra_options={"timeout": TIMEOUT})
    notifier.hook = Discreet(method="POST", http_conn_id=named)
    return notifier


def _sns(channel: Channel, message: Message) -> Any:
    from airflow.providers.amazon.aws.hooks.sns import SnsHook
    from airflow.providers.amazon.aws.notifications.sns import SnsNotifier
    from botocore.config import Config

    topic = channel.topic or ""
    config = Config(
        connect_timeout=TIMEOUT, read_timeout=TIMEOUT, retries={"mode": "standard", "total_max_attempts": 2}
    )
    subject = message.title.encode("ascii", "replace").decode()[:100]
    notifier = SnsNotifier(target_arn=topic, message=json.dumps(message.json), subject=subject)
    # Without a connection the credentials are those of the environment, as for the lake; the region is the topic's.
    notifier.hook = SnsHook(aws_conn_id=channel.conn_id, region_name=topic.split(":")[3], config=config)
    return notifier


_MAKE = {"slack": _slack, "email": _email, "webhook": _webhook, "sns": _sns}
