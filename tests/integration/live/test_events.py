"""Retraining events that come all at once, twice, during a training, or while the training DAG is paused.

Airflow joins events into one run, or drops them (airflow 56749, 56750, 63507). Here each has a partition, and what was
asked for is in the ledger, so that none is lost; and a training that is done is not done again. Scoring looks for
itself what was published.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

import pytest

from perennial.core import dates
from perennial.modeling import registry
from perennial.steps import dispatch
from perennial.storage import ledger, manifests
from perennial.storage.ledger import LedgerKind
from support import toys
from support.live import PLAN, Live, await_

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(600)]
NAME = "toy_eager"
MONITOR, SCORE, TRAIN = (f"{NAME}.{stage}" for stage in ("monitor", "score", "train"))


def asset(live: Live, kind: str) -> int:
    (found,) = live.airflow.call("GET", "/assets", params={"name_pattern": f"{kind}/{NAME}"})["assets"]
    return int(found["id"])


def emit(live: Live, kind: str, day: str, **extra: str) -> None:
    body = {"asset_id": asset(live, kind), "partition_key": day} | ({"extra": extra} if extra else {})
    live.airflow.call("POST", "/assets/events", json=body)


def reasons(live: Live, day: str) -> list[str]:
    """Those of the events that started the runs for one date."""
    found = []
    for run in live.runs_of(TRAIN, day):
        path = f"/dags/{TRAIN}/dagRuns/{run['dag_run_id']}/upstreamAssetEvents"
        found += [e["extra"]["reason"] for e in live.airflow.call("GET", path)["asset_events"]]
    return sorted(found)


def quiet(live: Live, days: list[str]) -> bool:
    """Whether each of these dates has a run of the training, and all are over."""
    runs = live.airflow.runs(TRAIN)
    assert all(r["state"] != "failed" for r in runs), runs
    return {r["partition_key"] for r in runs} >= set(days) and all(r["state"] == "success" for r in runs)


def trainings() -> list[str]:
    return [r["partition"] for r in ledger.records(NAME, LedgerKind.TRAINING)]


def test_events_at_once_are_each_trained_for_once(live: Live, champion: Any) -> None:
    spec = champion(NAME)
    days = [dates.add_days(PLAN.trained_until, n) for n in (1, 2)]
    sent = {day: [f"first wish of {day}", f"second wish of {day}"] for day in days}
    for day in days:
        emit(live, "retraining", day, reason=sent[day][0])
    # one runs by now, and max_active_runs is 1
    await_(
        lambda: any(r["state"] == "running" for r in live.airflow.runs(TRAIN)),
        60,
        lambda: live.airflow.runs(TRAIN),
    )
    for day in days:
        emit(live, "retraining", day, reason=sent[day][1])
    await_(lambda: quiet(live, days), 240, lambda: live.airflow.runs(TRAIN))
    assert {day: reasons(live, day) for day in days} == sent
    assert sorted(trainings()) == [PLAN.trained_until, *days]
    asked = [r["evidence"]["request"]["actor"] for r in ledger.records(NAME, LedgerKind.TRAINING)]
    assert asked[1:] == ["REST API"] * 2
    versions = [str(n) for n in range(1, 4)]
    assert len({registry.get_version(spec.name, v).digest for v in versions}) == 3
    assert len(ledger.records(NAME, LedgerKind.PROMOTION)) == len(
        {r["model_version"] for r in ledger.records(NAME, LedgerKind.PROMOTION)}
    )


def test_an_event_that_came_while_training_was_paused_is_sent_again(live: Live, champion: Any) -> None:
    champion(NAME)
    day = dates.add_days(max(trainings()), 2)
    night = dates.add_days(day, 1)
    assert night <= toys.LAST
    live.airflow.call("PATCH", f"/dags/{TRAIN}", json={"is_paused": True})
    monitored(live, day)
    assert decision(day)["decision"] == "requested"
    live.airflow.unpause(TRAIN)
    assert live.runs_of(TRAIN, day) == []
    monitored(live, night)
    assert decision(night)["reason"].startswith(f"the retraining requested on {day} is still in flight")
    await_(lambda: quiet(live, [day]), 120, lambda: live.airflow.runs(TRAIN))
    assert reasons(live, day) == [decision(day)["reason"]]
    assert trainings().count(day) == 1 and night not in trainings()


def test_nights_that_scoring_never_heard_of_are_scored_with_the_next(live: Live, champion: Any) -> None:
    spec = champion(NAME)
    # after the partition as of which the champion was trained
    first, *lost, last = (dates.add_days(PLAN.trained_until, n) for n in range(1, 5))
    dispatch.run("score", spec, start=first)
    for night in lost:  # published two hours ago
        manifests.write(manifests.Manifest(NAME, "data", night, {}, {}), 0)
        earlier = time.time() - timedelta(hours=2).total_seconds()
        os.utime(manifests.uri(NAME, "data", night), (earlier, earlier))
    emit(live, "data", last)
    await_(
        lambda: [r["state"] for r in live.runs_of(SCORE, last)] == ["success"],
        120,
        lambda: live.airflow.runs(SCORE),
    )
    assert all(manifests.read(NAME, "score", night) for night in (*lost, last))
    events = live.airflow.call("GET", "/assets/events", params={"asset_id": asset(live, "predictions")})
    assert {e["partition_key"] for e in events["asset_events"]} == {*lost, last}


def monitored(live: Live, day: str) -> None:
    """Run the monitoring of a date, to its end."""
    run = live.airflow.trigger(MONITOR, key=day)

    def over() -> bool:
        (found,) = [r for r in live.airflow.runs(MONITOR) if r["dag_run_id"] == run]
        assert found["state"] != "failed", live.airflow.failure_reason(MONITOR, run)
        return str(found["state"]) == "success"

    await_(over, 150, lambda: live.airflow.tasks(MONITOR, run))


def decision(day: str) -> dict[str, Any]:
    return [r for r in ledger.records(NAME, LedgerKind.RETRAINING) if r["partition"] == day][-1]
