from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import perennial
from perennial.core.errors import DataError, PerennialError
from perennial.lifecycle.explanation import explain_decision
from perennial.lifecycle.retraining import decide, record_answer, request_in_flight
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger, manifests
from perennial.storage.manifests import Manifest
from support.monitored import World, make_spec

DRIFT = {
    "verdict": "drifted",
    "reason": "70% of the weight",
    "model_version": "1",
    "champion_as_of": "2024-01-01",
}


@pytest.fixture(autouse=True)
def _home(make_world: Callable[..., World]) -> None:
    make_world()


def verdict(as_of: str, **result: Any) -> None:
    manifests.write(Manifest("toy", "monitor", as_of, {}, DRIFT | result), time.monotonic())


def ask(spec: ModelSpec, as_of: str, *, backfill: bool = False) -> dict[str, Any]:
    return decide(spec, as_of=as_of, actor="test", backfill=backfill)


def asked(as_of: str, spec: ModelSpec | None = None, **result: Any) -> dict[str, Any]:
    verdict(as_of, **result)
    return ask(spec or make_spec(), as_of)


def trained(as_of: str, decision: str = "refused") -> None:
    ledger.append("toy", kind="training", decision=decision, reason="", actor="gate", partition=as_of)


def retraining(**policy: Any) -> ModelSpec:
    return make_spec(retraining=policy)


def test_drift_asks_for_a_retraining_and_says_why() -> None:
    found = asked("2024-02-01")
    assert (
        found["retrain"] is True and "70% of the weight" in found["reason"] and found["triggers"] == ["drift"]
    )
    record = ledger.records("toy")[0]
    assert (record["kind"], record["decision"], record["partition"]) == (
        "retraining",
        "requested",
        "2024-02-01",
    )
    assert record["evidence"]["verdict"] == "drifted" and record["actor"] == "test"


@pytest.mark.parametrize("tier", ["ok", "suspected", "undetermined"])
def test_other_verdicts_do_not_and_are_recorded_as_well(tier: str) -> None:
    found = asked("2024-02-01", verdict=tier)
    assert found["retrain"] is False and tier in found["reason"]
    assert ledger.records("toy")[0]["decision"] == "declined"


WORSE = {"state": "bad", "reason": "worse", "since": "2024-01-30", "value": 0.2}


def signals(value: str, gain: float = 0.0, **others: Any) -> dict[str, Any]:
    return {
        "gain": {"state": value, "reason": "it would save", "since": "2024-01-31", "value": gain}
    } | others


def test_the_spec_says_on_what() -> None:
    bad = {"verdict": "ok", "signals": signals("bad", 0.1, performance=WORSE)}
    assert asked("2024-02-01", retraining(triggers=["age"]), **bad)["retrain"] is False
    found = asked("2024-02-02", retraining(triggers=["performance"]), **bad)
    assert found["retrain"] is True and found["reason"] == "performance: worse"
    assert asked("2024-02-20", retraining(triggers=["drift"]), **bad)["retrain"] is False


def test_what_recent_labels_promise_asks_for_a_retraining_since_the_change() -> None:
    found = asked("2024-02-02", verdict="ok", signals=signals("bad", 0.1, performance=WORSE))
    assert found["triggers"] == ["performance", "gain"]
    assert ledger.records("toy")[-1]["evidence"]["since"] == "2024-01-30"


def test_a_loss_asks_where_nothing_can_be_said_of_its_value() -> None:
    found = asked("2024-02-02", verdict="ok", signals={"performance": WORSE})  # as ranking has it
    assert found["retrain"] is True and found["triggers"] == ["performance"]


def test_a_loss_that_no_label_can_mend_asks_for_nobodys_retraining() -> None:
    found = asked("2024-02-02", verdict="ok", signals=signals("ok", performance=WORSE))
    assert found["retrain"] is False and "recent labels teach nothing better" in found["reason"]


@pytest.mark.parametrize(
    ("seen", "retrain"),
    [
        (signals("ok", 0.001), False),
        (signals("ok", 0.05), True),
        (signals("undetermined", estimated={"state": "ok", "reason": ""}), False),
        (signals("undetermined", estimated={"state": "suspected", "reason": "harder"}), True),
        (signals("undetermined"), True),
    ],
)
def test_drift_asks_only_where_it_harms_the_model(seen: dict[str, Any], retrain: bool) -> None:
    found = asked("2024-02-02", signals=seen)
    assert found["retrain"] is retrain, found["reason"]
    assert found["triggers"] == (["drift"] if retrain else [])


def test_age_counts_partition_days() -> None:
    spec = retraining(triggers=["age"], max_age_days=30)
    assert asked("2024-01-31", spec, verdict="ok")["retrain"] is False
    assert "31 days ago" in asked("2024-02-01", spec, verdict="ok")["reason"]


def test_a_backfill_never_fires() -> None:
    verdict("2024-02-01")
    found = ask(make_spec(), "2024-02-01", backfill=True)
    assert found["retrain"] is False and "backfill" in found["reason"]
    assert ask(make_spec(), "2024-02-01")["retrain"] is True  # the scheduled run is not bound by it
    assert ask(make_spec(), "2024-02-01", backfill=True)["retrain"] is False
    assert len(ledger.records("toy")) == 2


def test_asked_again_the_answer_is_the_same_and_is_not_recorded_twice() -> None:
    first = asked("2024-02-01")
    verdict("2024-02-01", verdict="ok")
    assert ask(make_spec(), "2024-02-01") == first
    assert len(ledger.records("toy")) == 1


def test_only_one_at_a_time() -> None:
    spec = retraining(cooldown_days=0)
    assert asked("2024-02-01", spec)["retrain"] is True
    found = asked("2024-02-02", spec)
    assert found["retrain"] is False and "in flight" in found["reason"]
    trained("2024-02-01")
    assert asked("2024-02-03", spec)["retrain"] is True


def test_one_that_never_ended_counts_as_lost() -> None:
    spec = retraining(cooldown_days=0, abandoned_after_days=5)
    asked("2024-02-01", spec)
    assert asked("2024-02-06", spec)["retrain"] is False
    assert asked("2024-02-07", spec)["retrain"] is True


@pytest.mark.parametrize("outcome", ["trained", "refused", "failed"])
def test_cooldown_after_any_outcome(outcome: str) -> None:
    asked("2024-02-01")
    trained("2024-02-01", outcome)
    found = asked("2024-02-07")
    assert found["retrain"] is False and "6 days ago" in found["reason"]
    assert asked("2024-02-08")["retrain"] is True


def test_a_training_of_that_date_before_the_request_has_ended_it() -> None:
    trained("2024-02-01")
    spec = retraining(cooldown_days=1)
    assert asked("2024-02-01", spec)["retrain"] and asked("2024-02-02", spec)["retrain"]


def test_the_budget() -> None:
    spec = retraining(cooldown_days=0, budget=2, budget_days=30)
    for day in ("2024-02-01", "2024-02-11"):
        assert asked(day, spec)["retrain"] is True
        trained(day)
    assert "budget is used up: 2" in asked("2024-02-21", spec)["reason"]
    assert asked("2024-03-02", spec)["retrain"] is True  # the first is 30 days ago
    assert asked("2024-05-02", retraining(budget=0))["retrain"] is False


def test_no_budget_at_all() -> None:
    assert "budget" in asked("2024-02-01", retraining(budget=0))["reason"]


def test_an_earlier_date_is_not_decided_after_a_later_one() -> None:
    asked("2024-03-01")
    trained("2024-03-01")
    assert "later date, 2024-03-01" in asked("2024-02-01")["reason"]


def test_declined_requests_do_not_count() -> None:
    asked("2024-02-01", verdict="ok")
    assert asked("2024-02-02")["retrain"] is True


def test_without_a_verdict_nothing_is_decided() -> None:
    with pytest.raises(DataError, match=r"2024-02-01.*no verdict"):
        ask(make_spec(), "2024-02-01")
    with pytest.raises(PerennialError, match="not a date"):
        ask(make_spec(), "../2024")
    assert ledger.records("toy") == []


def test_two_at_once_ask_once() -> None:
    verdict("2024-02-01")
    found: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda: found.append(ask(make_spec(), "2024-02-01"))) for _ in range(4)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 4 and all(f["retrain"] for f in found)
    assert len(ledger.records("toy")) == 1 and ledger.verify("toy") == 1


def test_it_is_light() -> None:
    code = (
        "import sys, perennial.lifecycle.retraining\n"
        "heavy = {'pandas', 'numpy', 'duckdb', 'pyarrow', 'mlflow', 'xgboost', 'evidently', 'scipy', 'sklearn'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(perennial.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[]"


def test_a_person_is_asked_where_the_policy_says_so_and_the_answer_stands() -> None:
    spec = retraining(mode="approval")
    found = asked("2024-02-01", spec)
    assert (found["retrain"], found["proposed"]) == (False, True)
    assert ask(spec, "2024-02-01")["proposed"] is True
    assert record_answer(spec, as_of="2024-02-01", approved=True, actor="ada")["retrain"] is True
    assert (
        record_answer(spec, as_of="2024-02-01", approved=False, actor="bob")["retrain"] is True
    )  # the first answer stands
    assert [(r["decision"], r["actor"]) for r in ledger.records("toy")] == [
        ("proposed", "test"),
        ("requested", "ada"),
    ]
    assert asked("2024-02-05", spec)["proposed"] is False  # in flight


def test_a_no_is_written_down_and_costs_no_cooldown() -> None:
    spec = retraining(mode="approval")
    asked("2024-02-01", spec)
    assert record_answer(spec, as_of="2024-02-01", approved=False, actor="ada")["retrain"] is False
    assert ledger.records("toy")[-1]["reason"].startswith("turned down by ada (drift")
    assert asked("2024-02-02", spec)["proposed"] is True


def test_why_tells_the_evidence_of_a_proposal_once() -> None:
    spec = retraining(mode="approval")
    asked("2024-02-01", spec, signals=signals("bad", 0.1))
    record_answer(spec, as_of="2024-02-01", approved=False, actor=None)
    told = explain_decision(spec, "2024-02-01")
    assert told[0] == "2024-02-01: a retraining was proposed by test (version 1)."
    assert told[-1] == "2024-02-01: nobody answered in time."
    assert sum(line.startswith("  gain:") for line in told) == 1


def test_nothing_else_is_proposed_while_an_answer_may_come() -> None:
    spec = retraining(mode="approval", approval_hours=30)
    asked("2024-02-01", spec)
    assert asked("2024-02-03", spec)["reason"].startswith(
        "the retraining proposed on 2024-02-01 waits for an answer"
    )
    assert asked("2024-02-04", spec)["proposed"] is True


def test_a_backfill_is_no_answer_to_a_proposal() -> None:
    spec = retraining(mode="approval")
    asked("2024-02-01", spec)
    assert ask(spec, "2024-02-01", backfill=True)["proposed"] is False
    assert record_answer(spec, as_of="2024-02-01", approved=True, actor="ada")["retrain"] is True


def test_a_request_is_in_flight_until_its_training_ends() -> None:
    spec = retraining(abandoned_after_days=5)
    asked("2024-02-01", spec)
    assert request_in_flight(spec, "2024-02-01") is None  # its own date is no later look
    found = request_in_flight(spec, "2024-02-06")
    assert found is not None and found["partition"] == "2024-02-01"
    assert request_in_flight(spec, "2024-02-07") is None  # lost
    trained("2024-02-01")
    assert request_in_flight(spec, "2024-02-06") is None


def test_nothing_can_be_approved_that_was_not_proposed() -> None:
    asked("2024-02-01")
    with pytest.raises(DataError, match="no retraining was proposed"):
        record_answer(make_spec(), as_of="2024-02-01", approved=True, actor="ada")


def test_a_freeze_forbids_with_its_reason() -> None:
    spec = retraining(freeze=[{"start": "2024-02-01", "end": "2024-02-03", "reason": "the sales"}])
    assert "no retraining from 2024-02-01 to 2024-02-03: the sales" in asked("2024-02-03", spec)["reason"]
    assert asked("2024-02-04", spec)["retrain"] is True


def test_the_gpu_budget_counts_the_trainings_of_a_month() -> None:
    spec = retraining(gpu_hours=2)
    for day, hours in (("2024-01-01", 9), ("2024-01-20", 1.5)):
        ledger.append(
            "toy", kind="training", decision="refused", reason="", actor="gate", partition=day,
            evidence={"gpu_seconds": hours * 3600},
        )  # fmt: skip
    assert asked("2024-02-05", spec)["retrain"] is True
    trained("2024-02-05")
    ledger.append(
        "toy", kind="training", decision="refused", reason="", actor="gate", partition="2024-02-06",
        evidence={"gpu_seconds": 1800},
    )  # fmt: skip
    assert "2.0 hours within 30 days" in asked("2024-02-14", spec)["reason"]


@pytest.mark.parametrize(("state", "retrain"), [("begun", False), ("passed", False), ("failed", True)])
def test_a_challenger_in_the_shadow_comes_first(state: str, retrain: bool) -> None:
    found = asked("2024-02-01", shadow={"version": "7", "nights": 3, "state": state})
    assert found["retrain"] is retrain
    assert retrain or "version 7 is on trial" in found["reason"]


def test_new_rows_another_spec_and_other_code_ask_where_the_policy_says_so() -> None:
    seen = {"verdict": "ok", "new_rows": 0.6, "changed": ["spec", "code"]}
    assert asked("2024-02-01", **seen)["retrain"] is False
    found = asked("2024-02-02", retraining(triggers=["rows", "spec"]), **seen)
    assert found["triggers"] == ["rows", "spec"] and "60% as many new rows" in found["reason"]


def test_why_tells_the_latest_decision_and_what_came_of_it() -> None:
    asked("2024-02-01", verdict="ok", signals=signals("bad", 0.1, performance=WORSE))
    trained("2024-02-01")
    told = "\n".join(explain_decision(make_spec(), "2024-02-03"))
    assert "Nothing was decided for 2024-02-03 itself" in told
    assert "2024-02-01: a retraining was asked for by test (version 1)" in told
    assert "It began on 2024-01-30" in told and "performance: BAD: worse" in told
    assert "was refused by the gate" in told
    with pytest.raises(DataError, match="nothing was decided"):
        explain_decision(make_spec(), "2024-01-01")


def test_why_tells_who_had_a_model_trained_in_spite_of_a_no() -> None:
    asked("2024-02-01", verdict="ok")
    said = ledger.records("toy")[-1]["reason"]
    for by, because in (("ada", "the sales began"), ("scheduler", said)):
        ledger.append(
            "toy", kind="training", decision="refused", reason="-0.7%", actor="gate", partition="2024-02-01",
            model_version="2", evidence={"asked": {"by": by, "because": because}},
        )  # fmt: skip
    told = explain_decision(make_spec(), "2024-02-01")
    assert told[-3:] == [
        "  Version 2 was refused by the gate: -0.7%",
        "    It was asked for by ada: the sales began",
        "  Version 2 was refused by the gate: -0.7%",
    ]
