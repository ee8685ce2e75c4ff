"""Delivers messages with the notifiers of Airflow's providers: Slack, SMTP, HTTP and SNS.

It calls their ``notify`` and not the notifiers themselves: when called, they would render a message that holds ``{{``
as a template, and log an error instead of raising it.
"""

from __future__ import annotations

import html
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import structlog

if TYPE_CHECKING:
    from perennial.spec.alerts import Channel

#: Seconds that a service may take to answer.
TIMEOUT = 5
#: An address in a text, without what ends a sentence.
_ADDRESS = re.compile(r"""(https?://[^\s<>"']*[^\s<>"'.,;:!?)\]])""")
log = structlog.get_logger("perennial.alerts")
# Not one of `logging.getLogger`, which are enabled again when Airflow configures its logging.
_silent = logging.Logger("perennial.silent")
_silent.disabled = True


@dataclass(frozen=True)
class Message:
    """A message to people and to machines.

    Attributes:
        title: one line.
        text: the whole message, for people.
        facts: small and JSON-able, for machines.
    """

    title: str
    text: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def json(self) -> dict[str, Any]:
        """Title, text and facts in one JSON-able mapping."""
        content: dict[str, Any] = {"title": self.title, "text": self.text} | self.facts
        return dict(json.loads(json.dumps(content, default=str)))


class Notifier(Protocol):
    """The part of Airflow's ``BaseNotifier`` that `deliver` uses."""

    def notify(self, context: Any) -> object:
        """Send the message."""


def deliver(channel: Channel, message: Message) -> bool:
    """Send a message to one channel; returns False, and logs a line, if that fails.

    An address may hold a secret, and so may the text of an error: neither is logged.
    """
    try:
        _NOTIFIERS[channel.kind](channel, message).notify({})
        return True
    except Exception as error:  # of the client, its configuration or the service: none may add a failure
        log.warning(
            "a notice was not delivered", channel=channel.name, kind=channel.kind, error=type(error).__name__
        )
        return False


def _slack(channel: Channel, message: Message) -> Notifier:
    from airflow.providers.slack.notifications.slack import SlackNotifier

    text = html.escape(message.text, quote=False)  # Slack wants the same characters escaped as HTML
    return SlackNotifier(
        slack_conn_id=channel.connection or "slack_api_default", channel=channel.channel or "", text=text,
        username="Perennial", timeout=TIMEOUT, unfurl_links=False, unfurl_media=False,
    )  # fmt: skip


def _email(channel: Channel, message: Message) -> Notifier:
    from airflow.providers.smtp.hooks.smtp import SmtpHook
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier

    class SingleTryHook(SmtpHook):
        """Tries once: the provider's hook tries five more times, each for as long as the connection says."""

        smtp_retry_limit = 0
        timeout = TIMEOUT

    conn_id = channel.connection or SmtpHook.default_conn_name
    notifier = SmtpNotifier(
        smtp_conn_id=conn_id,
        to=channel.to,
        subject=message.title,
        html_content=f"<pre>{_with_links(message.text)}</pre>",
    )
    notifier.hook = SingleTryHook(smtp_conn_id=conn_id)
    return notifier


def _with_links(text: str) -> str:
    """A text as HTML; not every mail client makes links of addresses."""
    parts = [html.escape(part) for part in _ADDRESS.split(text)]  # every second one is an address
    return "".join(f'<a href="{part}">{part}</a>' if i % 2 else part for i, part in enumerate(parts))


def _webhook(channel: Channel, message: Message) -> Notifier:
    from airflow.providers.http.hooks.http import HttpHook
    from airflow.providers.http.notifications.http import HttpNotifier
    from airflow.sdk import Connection

    class SilentHook(HttpHook):
        """Logs nothing: the provider's hook logs the address where it cannot be reached."""

        log: Any = _silent

        @classmethod
        def get_connection(cls, conn_id: str) -> Any:
            if channel.url:
                return Connection(conn_id=conn_id, conn_type="http", host=channel.url)
            return super().get_connection(conn_id)

    conn_id = channel.name if channel.url else channel.connection or HttpHook.default_conn_name
    notifier = HttpNotifier(http_conn_id=conn_id, json=message.json, extra_options={"timeout": TIMEOUT})
    notifier.hook = SilentHook(method="POST", http_conn_id=conn_id)
    return notifier


def _sns(channel: Channel, message: Message) -> Notifier:
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
    notifier.hook = SnsHook(aws_conn_id=channel.connection, region_name=topic.split(":")[3], config=config)
    return notifier


_NOTIFIERS: dict[str, Callable[[Channel, Message], Notifier]] = {
    "slack": _slack,
    "email": _email,
    "webhook": _webhook,
    "sns": _sns,
}
