"""Alerts, from a task's hooks to a real server of webhooks."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from perennial.alerting import decisions, incidents
from perennial.core import dates
from perennial.core.durations import Duration
from perennial.core.errors import LockHeldError
from perennial.lifecycle import retraining
from perennial.spec.alerts import SIGNALS
from perennial.spec.model_spec import ModelSpec
from perennial.spec.policies import ApprovalSpec, QuietHours
from perennial.spec.sources import PredictionsSpec
from perennial.storage import ledger
from perennial.storage.ledger import Decision, LedgerKind
from perennial.storage.manifests import Manifest, write
from perennial_airflow.alerting import alerts, notifiers
from perennial_airflow.alerting.daily_summary import SendDailySummary
from perennial_airflow.dag_factory.factory import STAGES

NIGHT, NEXT = "2013-02-01", "2013-02-02"


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
    error: object = None,
    task: str = "data",
    key: str | None = NIGHT,
    part: int = -1,
    dag: str = "",
    **params: str,
) -> Any:
    stage = {"promote": "train", "notify": "monitor"}.get(task, task)
    instance = SimpleNamespace(
        dag_id=dag or f"flight_late.{stage}", task_id=task, run_id="manual__1", try_number=3, log_url="http://ui/log",
        map_index=part,
    )  # fmt: skip
    run = SimpleNamespace(partition_key=None if params else key, run_type="manual")
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


def test_messages_lead_to_the_report_and_to_the_page_of_the_model(
    server: Any, mailbox: Any, with_channels: WithChannels, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://air.example/x")
    mail = {"kind": "email", "to": ["a@example.com"]}
    spec = with_channels(hook(server, decisions=["rejection"]), mail)
    console, reports = "https://air.example/x/perennial", f"{home}/lake/reports/flight_late"
    page = f"{console}/models/flight_late"
    stopped = f"{console}/reports/flight_late/validation/{NIGHT}.html"
    alerts.on_failure(spec)(context(FAILURE) | {"task": SimpleNamespace(report_address=stopped)})
    monitored(spec, NIGHT, f"{reports}/monitor/{NIGHT}.html", features=("bad", "PSI of hour"))
    decided(
        spec, LedgerKind.TRAINING, Decision.REJECTED, "no", evidence={"report": f"{reports}/training/4.html"}
    )
    alerts.on_success(spec)(context(task="train"))
    shown = {"validation": f"{NIGHT}.html", "monitor": f"{NIGHT}.html", "training": "4.html"}
    assert len(server.received) == 3
    for (kind, name), (_, _, body) in zip(shown.items(), server.received, strict=True):
        assert body["report"] == f"{console}/reports/flight_late/{kind}/{name}"
        assert body["model_page"] == page
        assert body["text"].endswith(f"\nreport: {body['report']}\nmodel page: {page}")
    assert f'<a href="{stopped}">' in mailbox.mails[0][2].get_body(("html",)).get_content()
    monkeypatch.setenv("PERENNIAL_ALERT_URL", f"{server.url}/all")
    SendDailySummary.execute.__wrapped__(SendDailySummary(task_id="send_summary"), {})
    assert server.received[-1][2]["text"].endswith(f"Pages of these models\n- flight_late: {page}")


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
        hook(server, "/data", signals=["failure:data"]), hook(server, "/drift", signals=["features"])
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


def test_a_killed_training_closes_its_request(spec: ModelSpec, home: Path) -> None:
    """A training that was killed, or whose pod never ran, left no record itself."""
    ledger.append(
        spec.name, kind=LedgerKind.RETRAINING, decision=Decision.REQUESTED, reason="drift", actor="scheduler",
        partition=NIGHT,
    )  # fmt: skip
    later = dates.add_days(NIGHT, 1)
    alerts.on_failure(spec)(context("Task received SIGKILL", "monitor"))
    assert retraining.request_in_flight(spec, later) is not None
    alerts.on_failure(spec)(context("Task received SIGKILL", "train"))
    assert retraining.request_in_flight(spec, later) is None
    record = ledger.records(spec.name)[-1]
    assert (record["kind"], record["decision"], record["reason"]) == (
        "training",
        "failed",
        "Task received SIGKILL",
    )


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


def monitored(spec: ModelSpec, day: str, report: str = "", **signals: tuple[str, str]) -> dict[str, Any]:
    content = {name: {"state": state, "reason": reason} for name, (state, reason) in signals.items()}
    result = {"verdict": "ok", "reason": "", "signals": content, "report": report}
    write(Manifest(spec.name, "monitor", day, {}, result), 0)
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


# --- from the ledger to an announcement


def decided(spec: ModelSpec, kind: LedgerKind, decision: Decision, reason: str, **more: Any) -> None:
    record = {"actor": "ada", "partition": NIGHT, "model_version": "4"} | more
    ledger.append(spec.name, kind=kind, decision=decision, reason=reason, **record)


def test_decisions_are_sent_to_the_channels_that_want_them(
    server: Any, mailbox: Any, with_channels: WithChannels
) -> None:
    spec = with_channels(
        hook(server, "/default"),
        hook(server, "/duty", signals=["failure:*"]),
        hook(server, "/refusals", signals=["failure:*"], decisions=["rejection", "declined"]),
        {"kind": "email", "to": ["a@example.com"], "decisions": ["rollback"]},
    )
    decided(spec, LedgerKind.TRAINING, Decision.REJECTED, "not better", actor="gate")
    alerts.on_success(spec)(context(task="train"))
    assert [path for path, _, _ in server.received] == ["/refusals"]
    body = dict(server.received.pop()[2])
    assert body.pop("recorded_at")
    assert body == {
        "title": "flight_late: rejected by the gate: version 4, partition 2013-02-01",
        "text": "flight_late: rejected by the gate: version 4, partition 2013-02-01\nnot better\n"
        f"Decided by gate. Owner: {spec.owner}",
        "id": "decision/1/c2", "decision": "rejection", "model": "flight_late", "owner": spec.owner,
        "partition": NIGHT, "version": "4", "reason": "not better", "actor": "gate",
    }  # fmt: skip
    decided(
        spec, LedgerKind.RETRAINING, Decision.DECLINED, "the verdict is ok"
    )  # by the policy: not announced
    decided(spec, LedgerKind.RETRAINING, Decision.DECLINED, "rejected by ada: no", evidence={"answer": "no"})
    alerts.on_success(spec)(context(task="approve_retraining"))
    decided(spec, LedgerKind.PROMOTION, Decision.PROMOTED, "better by 3%")
    alerts.on_success(spec)(context(task="promote"))
    decided(spec, LedgerKind.ROLLBACK, Decision.ROLLED_BACK, "worse since May", partition=None)
    alerts.on_success(spec)(context(task="rollback", key=None))
    assert [(path, body["title"]) for path, _, body in server.received] == [
        ("/refusals", "flight_late: retraining declined, partition 2013-02-01"),
        ("/default", "flight_late: promoted version 4, partition 2013-02-01"),
        ("/default", "flight_late: rolled back to version 4"),
    ]
    ((_, to, mail),) = mailbox.mails
    assert (to, mail["Subject"]) == (["a@example.com"], "flight_late: rolled back to version 4")
    assert "worse since May\nDecided by ada." in mail.get_body(("html",)).get_content()
    server.received.clear()
    alerts.on_success(spec)(context(task="promote"))
    assert server.received == [], "each decision once"


def test_a_decision_that_a_channel_did_not_accept_is_sent_later(
    server: Any, with_channels: WithChannels
) -> None:
    spec = with_channels(hook(server, "/broken"), hook(server, "/good"))
    decided(spec, LedgerKind.PROMOTION, Decision.PROMOTED, "better by 3%")
    alerts.on_skipped(spec)(context(task="conclude_trial"))
    assert [path for path, _, _ in server.received] == ["/broken", "/good"]
    server.broken.clear()
    alerts.on_success(spec)(context(task="notify"))
    assert [path for path, _, _ in server.received] == ["/broken", "/good", "/broken"]
    assert incidents.read_log(spec.name).undelivered == []


def test_a_decision_of_the_command_line_is_sent_by_the_daily_summary_at_the_latest(
    server: Any, with_channels: WithChannels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_ALERT_URL", f"{server.url}/all")
    decided(with_channels(), LedgerKind.ROLLBACK, Decision.ROLLED_BACK, "worse since May", partition=None)
    SendDailySummary.execute.__wrapped__(SendDailySummary(task_id="send_summary"), {})
    assert [body.get("decision") for _, _, body in server.received] == ["rollback", None]


def test_a_channel_that_is_added_hears_nothing_of_the_past(
    server: Any, with_channels: WithChannels, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_ago = dates.utc_timestamp(datetime.now(UTC) - timedelta(hours=decisions.ANNOUNCED_HOURS, minutes=1))
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "utc_now", lambda: long_ago)
        decided(with_channels(), LedgerKind.PROMOTION, Decision.PROMOTED, "better by 3%")
    alerts.on_success(with_channels(hook(server)))(context(task="notify"))
    assert server.received == []


# --- names of signals


def test_channels_and_mutes_can_name_every_task_and_stage(spec: ModelSpec) -> None:
    """Tasks that only some models have included: waiting for data or the night, a person's answer, a trial, parts,
    predictions in a database.
    """
    policy = spec.retraining.model_copy(
        update={
            "mode": "approval",
            "trial": Duration(3, "day"),
            "quiet_hours": QuietHours(from_hour=22, to_hour=6),
        }
    )
    data = spec.data.model_copy(update={"arrival": "wait"})
    predictions = PredictionsSpec(connection="shop", table="predictions")
    gate = spec.gate.model_copy(update={"approval": ApprovalSpec(who=["ada"])})
    changed = spec.model_copy(
        update={"retraining": policy, "data": data, "predictions": predictions, "gate": gate}
    )
    tasks = {task for stage in STAGES.values() for task in stage(changed).task_ids} | {"split_range"}
    assert {f"failure:{task}" for task in tasks} == {s for s in SIGNALS if s.startswith("failure:")}
    stages = {name for name, make in STAGES.items() if make(changed).deadline}
    assert {f"deadline:{stage}" for stage in stages} == {s for s in SIGNALS if s.startswith("deadline:")}


def test_each_feature_table_has_its_own_incidents_although_tables_share_a_source(
    server: Any, with_channels: WithChannels
) -> None:
    spec = with_channels(hook(server, signals=["failure:features.first"]))
    for name in ("first", "second"):
        alerts.on_failure(spec)(context(FAILURE, task="compute", dag=f"features.{name}"))
    both = ["failure:features.first", "failure:features.second"]
    assert [i.signal for i in incidents.read_log(spec.name).open] == both
    assert [body["signal"] for _, _, body in server.received] == both[:1], "the channel names one of them"
    alerts.on_success(spec)(context(task="compute", dag="features.second"))
    assert [i.signal for i in incidents.read_log(spec.name).open] == both[:1]


# --- each morning


def test_the_daily_summary_is_sent_and_the_outbox_is_tried_again(
    server: Any,
    with_channels: WithChannels,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PERENNIAL_ALERT_URL", f"{server.url}/broken")
    spec = with_channels()
    alerts.on_failure(spec)(context(FAILURE))
    send = SendDailySummary(task_id="send_summary")
    first = SendDailySummary.execute.__wrapped__(send, {})
    assert first["undelivered"] == ["perennial_alert_url"]
    server.broken.clear()
    server.received.clear()
    caplog.clear()
    with caplog.at_level("INFO"):
        second = SendDailySummary.execute.__wrapped__(send, {})
    assert [r.getMessage() for r in caplog.records if r.name == "airflow.task"][1:] == [
        "Sent to: perennial_alert_url."
    ]
    assert all(r.levelname == "INFO" for r in caplog.records)
    assert second["delivered"] == ["perennial_alert_url"]
    notice, summary = [body for _, _, body in server.received]
    assert notice["signal"] == "failure:data"
    assert summary["title"] == second["title"] and summary["incidents"] == 1
    assert "failure:data is bad since 2013-02-01" in summary["text"]
    assert incidents.read_log(spec.name).outbox == []
