"""The daily summary, from incidents and ledgers of several models."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from perennial.alerting import daily_summary, incidents
from perennial.alerting.incidents import SignalObservation
from perennial.spec.alerts import Mute
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger
from perennial.storage.ledger import Decision, LedgerKind
from support import toys

HOOK = {"kind": "webhook", "url": "http://127.0.0.1:9/team"}


@pytest.fixture
def specs(empty_home: Path, tmp_path: Path) -> dict[str, ModelSpec]:
    alerts_by_name = {
        "quiet": {"channels": [HOOK | {"name": "a"}]},
        "loud": {"channels": [HOOK | {"name": "b", "daily_summary": True}]},
        "other": {"channels": [HOOK | {"name": "c", "daily_summary": True, "signals": ["features"]}]},
    }
    return {
        name: toys.model(tmp_path / "models", name, alerts=alerts) for name, alerts in alerts_by_name.items()
    }


def test_without_news_it_is_one_line(specs: dict[str, ModelSpec]) -> None:
    summary = daily_summary.compose(specs)
    assert summary.text == summary.title
    assert "no incidents and no decisions for 3 models" in summary.text


def test_it_lists_incidents_decisions_and_mutes(specs: dict[str, ModelSpec]) -> None:
    for day, x in (("2024-03-03", "bad"), ("2024-03-10", "bad")):
        incidents.record_signals(specs["loud"], day, {"features": SignalObservation(x, f"x moved by {day}")})  # type: ignore[arg-type]
    incidents.mute_signals("other", Mute(signals=["failure:*"], until="2024-04-01", reason="a move"), "ann")  # type: ignore[arg-type]
    incidents.record_signals(
        specs["other"], "2024-03-03", {"failure:data": SignalObservation("bad", "disk full")}
    )
    incidents.record_signals(specs["quiet"], "2024-03-03", {"features": SignalObservation("bad")})
    incidents.record_signals(specs["quiet"], "2024-03-10", {"features": SignalObservation("ok")})
    for decision, reason, partition in (
        (Decision.REQUESTED, "drift: x", "2024-03-10"),
        (Decision.DECLINED, "no drift", None),
    ):
        ledger.append(
            "loud",
            kind=LedgerKind.RETRAINING,
            decision=decision,
            reason=reason,
            actor="scheduler",
            partition=partition,
        )
    ledger.append(
        "quiet",
        kind=LedgerKind.PROMOTION,
        decision=Decision.PROMOTED,
        reason="better by 3%",
        actor="scheduler",
        partition="2024-03-10",
        model_version="4",
    )
    summary = daily_summary.compose(specs)
    assert summary.title.endswith(": 2 open incidents, 2 decisions")
    assert summary.text.splitlines()[2:] == [
        "Open incidents",
        "- loud: features is bad since 2024-03-03, observed 2 times, last 2024-03-10: x moved by 2024-03-10",
        "- other: failure:data is bad since 2024-03-03, observed once (muted): disk full",
        "",
        "Closed incidents",
        "- quiet: features, bad from 2024-03-03 to 2024-03-03",
        "",
        "Decisions",
        "- quiet: promoted version 4, partition 2024-03-10: better by 3%",
        "- loud: retraining requested, partition 2024-03-10: drift: x",
        "",
        "Mutes",
        "- other: failure:* until 2024-04-01: a move",
    ]
    daily_summary.mark_sent(summary)
    later = daily_summary.compose(specs, datetime.now(UTC) + timedelta(seconds=5))
    assert later.facts["since"] == summary.until
    old = daily_summary.compose({"quiet": specs["quiet"]}, datetime.now(UTC) + timedelta(days=3))
    daily_summary.mark_sent(old)
    assert (
        "no incidents"
        in daily_summary.compose({"quiet": specs["quiet"]}, datetime.now(UTC) + timedelta(days=4)).text
    )


def test_it_asks_what_is_open_and_lists_what_was_refused(specs: dict[str, ModelSpec]) -> None:
    def decide(name: str, decision: Decision, partition: str, reason: str, **evidence: object) -> None:
        ledger.append(
            name, kind=LedgerKind.RETRAINING, decision=decision, reason=reason, actor="ada", partition=partition,
            evidence=evidence,
        )  # fmt: skip

    for day in ("2024-03-08", "2024-03-09", "2024-03-10"):
        decide("loud", Decision.PROPOSED, day, "drift: x")
        decide("loud", Decision.DECLINED, day, "a backfill never starts a retraining", backfill=True)
    decide("loud", Decision.DECLINED, "2024-03-08", "rejected by ada: the season is over (drift: x)",
           answer="rejected by ada: the season is over")  # fmt: skip
    decide("loud", Decision.REQUESTED, "2024-03-09", "approved by ada (drift: x)", answer="approved by ada")
    decide("quiet", Decision.DECLINED, "2024-03-10", "the verdict is ok")
    ledger.append(
        "other", kind=LedgerKind.TRAINING, decision=Decision.REJECTED, reason="log_loss 0.4 is not below 0.3",
        actor="gate", partition="2024-03-10", model_version="7",
    )  # fmt: skip
    summary = daily_summary.compose(specs)
    assert summary.title.endswith(": no open incidents, 3 decisions, 1 open question")
    assert summary.text.splitlines()[2:] == [
        "Open questions",
        "- loud: retrain as of 2024-03-10? Answer in Airflow: drift: x",
        "",
        "Decisions",
        "- loud: retraining declined, partition 2024-03-08: rejected by ada: the season is over (drift: x)",
        "- loud: retraining requested, partition 2024-03-09: approved by ada (drift: x)",
        "- other: rejected by the gate: version 7, partition 2024-03-10: log_loss 0.4 is not below 0.3",
    ]
    assert (summary.facts["questions"], summary.facts["decisions"]) == (1, 3)
    later = datetime.now(UTC) + timedelta(hours=specs["loud"].retraining.approval_hours + 1)
    assert daily_summary.compose(specs, later).facts["questions"] == 0


def test_each_address_gets_it_once(specs: dict[str, ModelSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [c.name for c in daily_summary.channels(specs.values())] == ["c"]
    monkeypatch.setenv("PERENNIAL_ALERT_URL", "http://127.0.0.1:9/all")
    assert {c.name for c in daily_summary.channels(specs.values())} == {"c", "perennial_alert_url"}


def test_a_model_that_cannot_be_read_does_not_silence_the_others(specs: dict[str, ModelSpec]) -> None:
    incidents.record_signals(specs["loud"], "2024-03-03", {"features": SignalObservation("bad", "x moved")})
    for file in (
        incidents.log_uri("other"),
        f"{incidents.log_uri('other').split('/incidents/')[0]}/daily_summary.json",
    ):
        Path(file).write_text("{damaged")
    summary = daily_summary.compose(specs)
    assert "- loud: features is bad" in summary.text
    assert (
        "Not known\n- other: its state cannot be read: " in summary.text
        and "does not hold incidents" in summary.text
    )
    assert summary.facts["unknown"] == 1


def test_it_lists_models_whose_latest_verdict_is_undetermined(specs: dict[str, ModelSpec]) -> None:
    for name, partition, verdict, backfill in (
        ("quiet", "2024-03-09", "undetermined", False),
        ("quiet", "2024-03-10", "ok", False),
        ("loud", "2024-03-09", "ok", False),
        ("loud", "2024-03-10", "undetermined", False),
        ("loud", "2024-03-11", "ok", True),
    ):
        ledger.append(
            name,
            kind=LedgerKind.RETRAINING,
            decision=Decision.DECLINED,
            reason=f"the verdict is {verdict}: why",
            actor="scheduler",
            partition=partition,
            evidence={"verdict": verdict, "backfill": backfill},
        )
    summary = daily_summary.compose(specs)
    assert summary.text.splitlines()[2:] == [
        "Undetermined verdicts",
        "- loud: as of 2024-03-10: the verdict is undetermined: why",
    ]
    assert summary.facts["undetermined"] == 1
