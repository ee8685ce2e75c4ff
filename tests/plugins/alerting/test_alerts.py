"""Alerts, from a task's hooks to real servers: Slack's API and webhooks over HTTP, mail over SMTP."""

from __future__ import annotations

import email
import email.policy
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP
from airflow.sdk.exceptions import AirflowFailException

from perennial.alerting import incidents
from perennial.core.errors import LockHeldError
from perennial.spec.alerts import Channel
from perennial.spec.model_spec import ModelSpec
from perennial.storage.manifests import Manifest, write
from perennial_airflow.alerting import alerts, notifiers
from perennial_airflow.alerting.daily_summary import SendDailySummary
from support.servers import free_port

NIGHT, NEXT = "2013-02-01", "2013-02-02"


class Hook(BaseHTTPRequestHandler):
    """Collects what it receives; answers 500 on /broken, late on /slow, and like Slack on /api."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, dict(self.headers), json.loads(body)))
        if self.path == "/slow":
            self.server.release.wait(10)
        answer = b'{"ok": true}' if self.path.startswith("/api/") else b""
        self.send_response(500 if self.path in self.server.broken else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    with HTTPServer(("127.0.0.1", 0), Hook) as http:
        http.received, http.broken, http.release = [], {"/broken"}, threading.Event()
        http.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield http
        http.release.set()
        http.shutdown()
        thread.join()


class Mailbox:
    """Collects the mails that an SMTP server receives."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, list[str], Any]] = []

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        self.mails.append((envelope.mail_from, envelope.rcpt_tos, mail))
        return "250 taken"


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mailbox]:
    box = Mailbox()
    controller = Controller(box, hostname="127.0.0.1", port=free_port())
    controller.start()
    extra = {"disable_ssl": True, "disable_tls": True, "from_email": "perennial@example.com"}
    connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": controller.port, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", json.dumps(connection))
    yield box
    controller.stop()


WithChannels = Callable[..., ModelSpec]


@pytest.fixture
def with_channels(spec: ModelSpec) -> WithChannels:
    """The model with these channels."""

    def make(*channels: dict[str, Any], **more: Any) -> ModelSpec:
        named = [{"name": f"c{i}"} | channel for i, channel in enumerate(channels)]
        changed = spec.model_dump(mode="json") | {"alerts": {"channels": named} | more}
        return ModelSpec.from_bundle(spec.bundle() | {"model": changed})

    return make


def hook(server: Any, path: str = "/hook", **more: Any) -> dict[str, Any]:
    return {"kind": "webhook", "url": server.url + path} | more


def context(
    error: object = None, task: str = "data", key: str | None = NIGHT, part: int = -1, **params: str
) -> Any:
    stage = {"promote": "train", "notify": "monitor"}.get(task, task)
    instance = SimpleNamespace(
        dag_id=f"flight_late.{stage}", task_id=task, run_id="manual__1", try_number=3, log_url="http://ui/log",
        map_index=part,
    )  # fmt: skip
    run = SimpleNamespace(partition_key=None if params else key)
    return {"task_instance": instance, "dag_run": run, "params": params, "exception": error}


FAILURE = AirflowFailException(
    "model flight_late, partition 2013-02-01: the file is empty\n  What to do: send it again"
)


# --- from a task to an incident


def test_a_failure_is_sent_once_and_its_end_too(server: Any, with_channels: WithChannels) -> None:
    spec = with_channels(hook(server))
    alerts.on_failure(spec)(context(FAILURE))
    ((path, headers, body),) = server.received
    assert (path, headers["Content-Type"]) == ("/hook", "application/json")
    text = body.pop("text")
    assert body == {
        "title": "flight_late: failure:data is bad, partition 2013-02-01",
        "model": "flight_late", "stage": "data", "task": "data", "run_id": "manual__1", "partition": NIGHT,
        "try_number": 3, "owner": spec.owner, "log": "http://ui/log", "reason": str(FAILURE),
        "id": "failure:data/1/opened/c0", "kind": "opened", "signal": "failure:data", "number": 1, "severity": "bad",
        "count": 1, "first": NIGHT, "last": NIGHT,
    }  # fmt: skip
    assert "What to do: send it again" in text and "http://ui/log" in text
    alerts.on_failure(spec)(context(FAILURE))
    alerts.on_failure(spec)(context(FAILURE, key=NEXT))
    assert len(server.received) == 1
    alerts.on_success(spec)(context(task="score"))
    assert len(server.received) == 1
    alerts.on_success(spec)(context(key=NEXT))
    assert server.received[1][2]["title"] == "flight_late: failure:data recovered, partition 2013-02-02"
    alerts.on_success(spec)(context(key=NEXT))
    assert len(server.received) == 2


def test_tasks_of_one_stage_have_their_own_incidents(server: Any, with_channels: WithChannels) -> None:
    spec = with_channels(hook(server))
    alerts.on_failure(spec)(context(FAILURE, task="promote"))
    alerts.on_success(spec)(context(task="train"))
    assert [i.signal for i in incidents.read_log(spec.name).open] == ["failure:promote"]


def test_channels_get_the_signals_that_they_name(
    server: Any, with_channels: WithChannels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_ALERT_URL", f"{server.url}/all")
    spec = with_channels(
        hook(server, "/data", signals=["failure:data"]), hook(server, "/drift", signals=["drift"])
    )
    alerts.on_failure(spec)(context(FAILURE))
    assert [path for path, _, _ in server.received] == ["/data", "/all"]


def test_what_was_not_delivered_is_sent_later_and_not_twice(server: Any, with_channels: WithChannels) -> None:
    spec = with_channels(hook(server, "/broken"), hook(server, "/good"))
    alerts.on_failure(spec)(context(FAILURE))
    assert [path for path, _, _ in server.received] == ["/broken", "/good"]
    assert [n.channel for n in incidents.read_log(spec.name).outbox] == ["c0"]
    server.broken.clear()
    alerts.on_failure(spec)(context(FAILURE))
    assert [path for path, _, _ in server.received] == ["/broken", "/good", "/broken"]
    assert incidents.read_log(spec.name).outbox == []


def test_a_failure_is_sent_without_a_lake(server: Any, with_channels: WithChannels, home: Path) -> None:
    spec = with_channels(hook(server))
    (home / "lake").write_text("a file where the lake should be")
    alerts.on_failure(spec)(context(FAILURE))
    alerts.on_success(spec)(context())
    assert [body["kind"] for _, _, body in server.received] == ["opened"]


def test_while_another_task_delivers_nothing_is_sent_twice(
    server: Any, with_channels: WithChannels, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = with_channels(hook(server))

    def busy(*_: object) -> int:
        raise LockHeldError("the lock notices-flight_late is held by another run", "wait")

    with monkeypatch.context() as patch:
        patch.setattr(incidents, "deliver_notices", busy)
        alerts.on_failure(spec)(context(FAILURE))
        assert monitored(spec, NIGHT)["undelivered"] == 1
    assert server.received == []
    assert monitored(spec, NIGHT)["undelivered"] == 0
    assert len(server.received) == 1


def test_a_range_is_dated_by_its_last_day(server: Any, with_channels: WithChannels) -> None:
    spec = with_channels(hook(server))
    alerts.on_failure(spec)(context(FAILURE, start="2013-01-01", end="2013-01-31"))
    ((_, _, body),) = server.received
    assert (body["partition"], body["last"]) == ("2013-01-01..2013-01-31", "2013-01-31")


def test_values_of_the_data_are_not_sent(server: Any, with_channels: WithChannels) -> None:
    alerts.on_failure(with_channels(hook(server)))(
        context(ValueError("could not convert string to float: 'N12345'"))
    )
    ((_, _, body),) = server.received
    assert body["reason"] == "ValueError: see the task's log"
    assert "N12345" not in json.dumps(body)


def test_nothing_configured_nothing_sent(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifiers, "deliver", lambda *_: pytest.fail("something was sent"))
    alerts.on_failure(spec)(context(FAILURE))
    assert [i.signal for i in incidents.read_log(spec.name).open] == ["failure:data"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/x",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "nonsense",
        "http://[broken",
        "arn:x",
    ],
)
def test_an_address_that_cannot_be_used_stops_no_other(
    url: str, server: Any, with_channels: WithChannels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_ALERT_URL", url)
    alerts.on_failure(with_channels(hook(server)))(context(FAILURE))
    assert len(server.received) == 1


def test_half_a_context_is_enough(server: Any, with_channels: WithChannels) -> None:
    """Airflow's DAG processor calls the hook for a task whose worker was killed, with less in hand."""
    spec = with_channels(hook(server))
    task = SimpleNamespace(dag_id="flight_late.train", task_id="train", run_id="manual__1", try_number=1)
    alerts.on_failure(spec)({"task_instance": task})
    ((_, _, body),) = server.received
    assert (body["stage"], body["partition"], body["log"]) == ("train", None, None)
    assert body["title"] == "flight_late: failure:train is bad"
    alerts.on_success(spec)(context(task="train"))
    assert server.received[1][2]["kind"] == "closed"


# --- from a verdict to an incident


def monitored(spec: ModelSpec, day: str, **signals: tuple[str, str]) -> dict[str, Any]:
    content = {name: {"state": state, "reason": reason} for name, (state, reason) in signals.items()}
    write(Manifest(spec.name, "monitor", day, {}, {"verdict": "ok", "reason": "", "signals": content}), 0)
    return alerts.notify(spec, context(task="notify", key=day) | {"run_id": "r"})


def test_a_verdict_opens_and_ends_an_incident(server: Any, with_channels: WithChannels) -> None:
    spec, fine = with_channels(hook(server)), ("ok", "")
    drifted = monitored(spec, NIGHT, features=("bad", "PSI of hour"), performance=fine)
    assert drifted == {"open": ["features"], "undelivered": 0}
    unknown = monitored(spec, "2013-02-08", features=("undetermined", "few rows"), performance=fine)
    assert unknown["open"] == ["features"]
    last = monitored(spec, "2013-02-15", features=fine, performance=("bad", "worse"))
    assert last["open"] == ["performance"]
    assert [(t["signal"], t["kind"], t["reason"]) for _, _, t in server.received] == [
        ("features", "opened", "PSI of hour"), ("features", "closed", ""), ("performance", "opened", "worse"),
    ]  # fmt: skip
    server.received.clear()
    monitored(spec, NIGHT, features=("bad", "PSI of hour"), performance=fine)
    assert server.received == [], "an older date, monitored again"


def test_a_channel_may_want_what_is_only_suspected(server: Any, with_channels: WithChannels) -> None:
    spec = with_channels(hook(server, severity="suspected"))
    assert monitored(spec, NIGHT, fairness=("suspected", "a gap"), features=("ok", ""))["open"] == [
        "fairness"
    ]
    assert [t["title"] for _, _, t in server.received] == [
        "flight_late: fairness is suspected, partition 2013-02-01"
    ]


# --- the channels


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


def test_mail(mailbox: Mailbox) -> None:
    assert notifiers.deliver(channel(kind="email", to=["a@example.com", "b@example.com"]), MESSAGE)
    ((sender, to, mail),) = mailbox.mails
    assert (sender, to) == ("perennial@example.com", ["a@example.com", "b@example.com"])
    assert mail["Subject"] == "m: drift is bad"
    body = mail.get_body(("html",)).get_content()
    assert "&lt;b&gt;{{ 7 * 7 }}&lt;/b&gt; &amp; é" in body


def test_a_webhook_by_its_connection(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "http", "host": f"{server.url}/hook", "extra": {"X-Token": "secret"}}
    monkeypatch.setenv("AIRFLOW_CONN_TEAM_HOOK", json.dumps(connection))
    assert notifiers.deliver(channel(kind="webhook", connection="team_hook"), MESSAGE)
    ((path, headers, body),) = server.received
    assert (path, headers["X-Token"]) == ("/hook", "secret")
    assert body == {"title": MESSAGE.title, "text": MESSAGE.text, "signal": "drift"}


def test_a_webhook_that_does_not_answer_is_given_up(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifiers, "TIMEOUT", 0.3)
    assert not notifiers.deliver(channel(**hook(server, "/slow")), MESSAGE)


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


# --- each morning


def test_the_daily_summary_is_sent_and_the_outbox_is_tried_again(
    server: Any, with_channels: WithChannels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_ALERT_URL", f"{server.url}/broken")
    spec = with_channels()
    alerts.on_failure(spec)(context(FAILURE))
    send = SendDailySummary(task_id="send_summary")
    first = SendDailySummary.execute.__wrapped__(send, {})
    assert first["undelivered"] == ["perennial_alert_url"]
    server.broken.clear()
    server.received.clear()
    second = SendDailySummary.execute.__wrapped__(send, {})
    assert second["delivered"] == ["perennial_alert_url"]
    notice, summary = [body for _, _, body in server.received]
    assert notice["signal"] == "failure:data"
    assert summary["title"] == second["title"] and summary["incidents"] == 1
    assert "failure:data is bad since 2013-02-01" in summary["text"]
    assert incidents.read_log(spec.name).outbox == []
