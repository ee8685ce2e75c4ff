"""The morning's digest, from incidents and ledgers of several models."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from perennial.alerting import daily_summary, incidents
from perennial.alerting.incidents import SignalObservation
from perennial.spec.alerts import Mute
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger
from support import toys

HOOK = {"kind": "webhook", "url": "http://127.0.0.1:9/team"}


@pytest.fixture
def specs(house: Path, tmp_path: Path) -> dict[str, ModelSpec]:
    said = {
        "quiet": {"channels": [HOOK | {"name": "a"}]},
        "loud": {"channels": [HOOK | {"name": "b", "daily_summary": True}]},
        "other": {"channels": [HOOK | {"name": "c", "daily_summary": True, "signals": ["drift"]}]},
    }
    return {name: toys.model(tmp_path / "models", name, alerts=alerts) for name, alerts in said.items()}


def test_where_there_is_nothing_to_tell_it_is_one_line(specs: dict[str, ModelSpec]) -> None:
    found = daily_summary.compose(specs)
    assert found.text == found.title
    assert "all is well with 3 models" in found.text


def test_it_tells_what_is_wrong_what_was_decided_and_what_is_muted(specs: dict[str, ModelSpec]) -> None:
    for day, x in (("2024-03-03", "bad"), ("2024-03-10", "bad")):
        incidents.record_signals(specs["loud"], day, {"drift": SignalObservation(x, f"x moved by {day}")})  # type: ignore[arg-type]
    incidents.mute_signals("other", Mute(signals=["failure:*"], until="2024-04-01", reason="a move"), "ann")  # type: ignore[arg-type]
    incidents.record_signals(
        specs["other"], "2024-03-03", {"failure:data": SignalObservation("bad", "disk full")}
    )
    incidents.record_signals(specs["quiet"], "2024-03-03", {"drift": SignalObservation("bad")})
    incidents.record_signals(specs["quiet"], "2024-03-10", {"drift": SignalObservation("ok")})
    ledger.append("loud", kind="retraining", decision="requested", reason="drift: x", actor="scheduler",
                  partition="2024-03-10")  # fmt: skip
    ledger.append("loud", kind="retraining", decision="declined", reason="calm", actor="scheduler")
    ledger.append("quiet", kind="promotion", decision="promoted", reason="better by 3%", actor="scheduler",
                  partition="2024-03-10", model_version="4")  # fmt: skip
    found = daily_summary.compose(specs)
    assert found.title.endswith(": 2 open incidents, 2 decisions")
    assert found.text.splitlines()[2:] == [
        "Open incidents",
        "- loud: drift is bad since 2024-03-03, seen 2 times, last 2024-03-10: x moved by 2024-03-10",
        "- other: failure:data is bad since 2024-03-03, seen once (muted): disk full",
        "",
        "Ended",
        "- quiet: drift, bad from 2024-03-03 to 2024-03-03",
        "",
        "Decided",
        "- quiet: promoted version 4, partition 2024-03-10: better by 3%",
        "- loud: retraining asked for, partition 2024-03-10: drift: x",
        "",
        "Muted",
        "- other: failure:* until 2024-04-01: a move",
    ]
    daily_summary.mark_sent(found)
    later = daily_summary.compose(specs, datetime.now(UTC) + timedelta(seconds=5))
    assert later.facts["since"] == found.until
    old = daily_summary.compose({"quiet": specs["quiet"]}, datetime.now(UTC) + timedelta(days=3))
    daily_summary.mark_sent(old)
    assert (
        "all is well"
        in daily_summary.compose({"quiet": specs["quiet"]}, datetime.now(UTC) + timedelta(days=4)).text
    )


def test_each_place_gets_it_once(specs: dict[str, ModelSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [c.name for c in daily_summary.channels(specs.values())] == ["c"]
    monkeypatch.setenv("PERENNIAL_ALERT_URL", "http://127.0.0.1:9/all")
    assert {c.name for c in daily_summary.channels(specs.values())} == {"c", "perennial_alert_url"}
