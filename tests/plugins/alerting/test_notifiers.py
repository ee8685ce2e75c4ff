"""Channels of every kind, against real servers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perennial.spec.alerts import Channel
from perennial_airflow.alerting import notifiers

MESSAGE = notifiers.Message("m: drift is bad", "m: drift is bad\n<b>{{ 7 * 7 }}</b> & é", {"signal": "drift"})


def channel(**keys: Any) -> Channel:
    return Channel.model_validate({"name": "c"} | keys)


def test_slack(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"base_url": f"{server.url}/api/"}
    monkeypatch.setenv(
        "AIRFLOW_CONN_SLACK_TEAM",
        json.dumps({"conn_type": "slack", "password": "xoxb-token", "extra": extra}),
    )
    assert notifiers.deliver(channel(kind="slack", connection="slack_team", channel="#models"), MESSAGE)
    ((path, headers, body),) = server.received
    assert (path, headers["Authorization"]) == ("/api/chat.postMessage", "Bearer xoxb-token")
    assert body["channel"] == "#models"
    assert body["text"] == "m: drift is bad\n&lt;b&gt;{{ 7 * 7 }}&lt;/b&gt; &amp; é"


def test_mail(mailbox: Any) -> None:
    assert notifiers.deliver(channel(kind="email", to=["a@example.com", "b@example.com"]), MESSAGE)
    ((sender, to, mail),) = mailbox.mails
    assert (sender, to) == ("perennial@example.com", ["a@example.com", "b@example.com"])
    assert mail["Subject"] == "m: drift is bad"
    body = mail.get_body(("html",)).get_content()
    assert "&lt;b&gt;{{ 7 * 7 }}&lt;/b&gt; &amp; é" in body


def test_a_mail_has_links(mailbox: Any) -> None:
    text = 'see "https://air.example/a?b=1&c=2", or (http://air.example).'
    assert notifiers.deliver(channel(kind="email", to=["a@example.com"]), notifiers.Message("m", text))
    body = mailbox.mails[0][2].get_body(("html",)).get_content()
    page = "https://air.example/a?b=1&amp;c=2"
    assert f'&quot;<a href="{page}">{page}</a>&quot;' in body
    assert '(<a href="http://air.example">http://air.example</a>).' in body


def test_a_webhook_by_its_connection(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "http", "host": f"{server.url}/hook", "extra": {"X-Token": "secret"}}
    monkeypatch.setenv("AIRFLOW_CONN_TEAM_HOOK", json.dumps(connection))
    assert notifiers.deliver(channel(kind="webhook", connection="team_hook"), MESSAGE)
    ((path, headers, body),) = server.received
    assert (path, headers["X-Token"]) == ("/hook", "secret")
    assert body == {"title": MESSAGE.title, "text": MESSAGE.text, "signal": "drift"}


def test_a_webhook_that_does_not_answer_is_given_up(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifiers, "TIMEOUT", 0.3)
    assert not notifiers.deliver(channel(kind="webhook", url=f"{server.url}/slow"), MESSAGE)


@pytest.mark.parametrize(
    "way",
    [
        {"kind": "webhook", "url": "http://127.0.0.1:1/x"},
        {"kind": "webhook", "connection": "not_there"},
        {"kind": "slack", "channel": "#models", "connection": "not_there"},
        {"kind": "email", "to": ["a@example.com"], "connection": "not_there"},
        {"kind": "sns", "topic": "arn:aws:sns:eu-central-1:123456789012:t", "connection": "not_there"},
    ],
    ids=lambda w: "-".join(map(str, w)),
)
def test_a_channel_that_is_away_fails_nothing(way: dict[str, Any]) -> None:
    assert notifiers.deliver(channel(**way), MESSAGE) is False


@pytest.mark.parametrize("path", ["/broken?token=hush", ":1/hush"])
def test_an_address_is_not_logged(
    server: Any, path: str, capfd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server.broken.add("/broken?token=hush")
    url = server.url + path if path.startswith("/") else f"http://127.0.0.1{path}"
    assert notifiers.deliver(channel(kind="webhook", url=url), MESSAGE) is False
    logged = caplog.text + "".join(capfd.readouterr())
    assert "not delivered" in logged and "hush" not in logged


def test_a_mail_server_that_is_away_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": 1, "extra": {"disable_ssl": True}}
    monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", json.dumps(connection))
    assert notifiers.deliver(channel(kind="email", to=["a@example.com"]), MESSAGE) is False
