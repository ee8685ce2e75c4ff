"""Decisions on retrainings: what triggers one, what forbids it, and a person's approval."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import perennial
from perennial.core.errors import DataError, PerennialError
from perennial.lifecycle.retraining import close_request, record_answer, request_in_flight
from perennial.spec.policies import RetrainingSpec
from perennial.storage import ledger
from perennial.storage.ledger import Decision
from support.decisions import (
    WORSE,
    decide_again,
    decide_on,
    make_policy,
    make_signals,
    record_training,
    write_verdict,
)
from support.monitored import World, make_spec


@pytest.fixture(autouse=True)
def _home(make_world: Callable[..., World]) -> None:
    make_world()


def test_drift_requests_a_retraining_and_gives_the_reason() -> None:
    decision = decide_on("2024-02-01")
    assert decision["retrain"] is True and decision["triggers"] == ["drift"]
    assert "70% of the weight" in decision["reason"]
    record = ledger.records("toy")[0]
    assert (record["kind"], record["decision"], record["partition"]) == (
        "retraining",
        "requested",
        "2024-02-01",
    )
    assert record["evidence"]["verdict"] == "drifted"
    assert (record["actor"], record["evidence"]["triggered_by"]) == ("retraining policy", "test")


@pytest.mark.parametrize("tier", ["ok", "suspected", "undetermined"])
def test_other_verdicts_do_not_fire_and_are_recorded(tier: str) -> None:
    decision = decide_on("2024-02-01", verdict=tier)
    assert decision["retrain"] is False and tier in decision["reason"]
    assert ledger.records("toy")[0]["decision"] == "declined"


def test_only_triggers_of_the_policy_fire() -> None:
    bad = {"verdict": "ok", "signals": make_signals("bad", 0.1, performance=WORSE)}
    assert decide_on("2024-02-01", make_policy(triggers=["age"]), **bad)["retrain"] is False
    decision = decide_on("2024-02-02", make_policy(triggers=["performance"]), **bad)
    assert decision["retrain"] is True and decision["reason"] == "performance: worse"
    assert decide_on("2024-02-20", make_policy(triggers=["drift"]), **bad)["retrain"] is False


def test_a_gain_requests_a_retraining_since_the_change() -> None:
    decision = decide_on("2024-02-02", verdict="ok", signals=make_signals("bad", 0.1, performance=WORSE))
    assert decision["triggers"] == ["gain", "performance"]
    assert ledger.records("toy")[-1]["evidence"]["since"] == "2024-01-30"


def test_a_higher_loss_fires_where_the_gain_is_undetermined() -> None:
    decision = decide_on("2024-02-02", verdict="ok", signals={"performance": WORSE})  # as ranking has it
    assert decision["retrain"] is True and decision["triggers"] == ["performance"]


def test_a_higher_loss_without_a_gain_does_not_fire() -> None:
    decision = decide_on("2024-02-02", verdict="ok", signals=make_signals("ok", performance=WORSE))
    assert decision["retrain"] is False and "recent labels indicate no gain" in decision["reason"]


@pytest.mark.parametrize(
    ("signals", "retrain"),
    [
        (make_signals("ok", 0.001), False),
        (make_signals("ok", 0.05), True),
        (make_signals("undetermined", estimated={"state": "ok", "reason": ""}), False),
        (make_signals("undetermined", estimated={"state": "suspected", "reason": "harder"}), True),
        (make_signals("undetermined"), True),
    ],
)
def test_drift_fires_only_where_it_harms_the_model(signals: dict[str, Any], retrain: bool) -> None:
    decision = decide_on("2024-02-02", signals=signals)
    assert decision["retrain"] is retrain, decision["reason"]
    assert decision["triggers"] == (["drift"] if retrain else [])


def test_age_counts_partition_days() -> None:
    spec = make_policy(triggers=["age"], max_age="30 days")
    assert decide_on("2024-01-31", spec, verdict="ok")["retrain"] is False
    assert "2024-01-01, more than 30 days" in decide_on("2024-02-01", spec, verdict="ok")["reason"]


def test_a_backfill_never_fires() -> None:
    write_verdict("2024-02-01")
    decision = decide_again(make_spec(), "2024-02-01", backfill=True)
    assert decision["retrain"] is False and "backfill" in decision["reason"]
    assert decide_again(make_spec(), "2024-02-01")["retrain"] is True  # the scheduled run is not bound by it
    assert decide_again(make_spec(), "2024-02-01", backfill=True)["retrain"] is False
    assert len(ledger.records("toy")) == 2


def test_a_repeated_decision_is_the_same_and_is_recorded_once() -> None:
    first = decide_on("2024-02-01")
    write_verdict("2024-02-01", verdict="ok")
    assert decide_again(make_spec(), "2024-02-01") == first
    assert len(ledger.records("toy")) == 1


def test_what_was_declined_is_decided_again_when_its_verdict_has_changed() -> None:
    before = {"verdict": "undetermined", "reason": "there is no champion yet", "model_version": None}
    assert decide_on("2024-02-01", **before)["retrain"] is False
    assert decide_again(make_spec(), "2024-02-01")["retrain"] is False
    assert len(ledger.records("toy")) == 1  # nothing has changed: nothing is recorded
    decision = decide_on("2024-02-01")
    assert decision["retrain"] is True and decision["reason"].startswith("drift")
    assert [r["model_version"] for r in ledger.records("toy")] == ["", "1"]
    assert decide_again(make_spec(), "2024-02-01") == decision


def test_what_was_declined_is_decided_again_when_the_policy_or_a_block_has_changed() -> None:
    assert "budget of retrainings is 0" in decide_on("2024-02-01", make_policy(budget=0))["reason"]
    assert decide_again(make_policy(budget=0), "2024-02-01")["retrain"] is False
    assert len(ledger.records("toy")) == 1
    spec = make_policy(cooldown="0 days")
    assert decide_again(spec, "2024-02-01")["retrain"] is True
    assert "in flight" in decide_on("2024-02-02", spec)["reason"]
    record_training("2024-02-01")
    assert decide_again(spec, "2024-02-02")["retrain"] is True


def test_an_answer_of_a_person_stands_whatever_changes() -> None:
    spec = make_policy(mode="approval")
    decide_on("2024-02-01", spec)
    answer = record_answer(spec, as_of="2024-02-01", approved=False, actor="ada")
    assert decide_on("2024-02-01", make_spec(), reason="90% of the weight") == answer


def test_only_one_at_a_time() -> None:
    spec = make_policy(cooldown="0 days")
    assert decide_on("2024-02-01", spec)["retrain"] is True
    decision = decide_on("2024-02-02", spec)
    assert decision["retrain"] is False and "in flight" in decision["reason"]
    record_training("2024-02-01")
    assert decide_on("2024-02-03", spec)["retrain"] is True


def test_one_that_never_ended_counts_as_abandoned() -> None:
    spec = make_policy(cooldown="0 days", abandoned_after="5 days")
    decide_on("2024-02-01", spec)
    assert decide_on("2024-02-06", spec)["retrain"] is False
    assert decide_on("2024-02-07", spec)["retrain"] is True


@pytest.mark.parametrize("outcome", [Decision.ACCEPTED, Decision.REJECTED, Decision.FAILED])
def test_cooldown_after_any_outcome(outcome: Decision) -> None:
    decide_on("2024-02-01")
    record_training("2024-02-01", outcome)
    decision = decide_on("2024-02-07")
    assert decision["retrain"] is False and "cooldown is 7 days" in decision["reason"]
    assert decide_on("2024-02-08")["retrain"] is True


def test_a_training_of_that_date_before_the_request_has_ended_it() -> None:
    record_training("2024-02-01")
    spec = make_policy(cooldown="1 day")
    assert decide_on("2024-02-01", spec)["retrain"] and decide_on("2024-02-02", spec)["retrain"]


def test_the_budget() -> None:
    spec = make_policy(cooldown="0 days", budget=2, budget_period="30 days")
    for day in ("2024-02-01", "2024-02-11"):
        assert decide_on(day, spec)["retrain"] is True
        record_training(day)
    assert "budget is used up: 2" in decide_on("2024-02-21", spec)["reason"]
    assert decide_on("2024-03-02", spec)["retrain"] is True  # the first is 30 days ago
    assert decide_on("2024-05-02", make_policy(budget=0))["retrain"] is False


def test_no_budget_at_all() -> None:
    assert "budget" in decide_on("2024-02-01", make_policy(budget=0))["reason"]


def test_an_earlier_date_is_not_decided_after_a_later_one() -> None:
    decide_on("2024-03-01")
    record_training("2024-03-01")
    assert "later date, 2024-03-01" in decide_on("2024-02-01")["reason"]


def test_declined_requests_do_not_count() -> None:
    decide_on("2024-02-01", verdict="ok")
    assert decide_on("2024-02-02")["retrain"] is True


def test_without_a_verdict_nothing_is_decided() -> None:
    with pytest.raises(DataError, match=r"2024-02-01.*no verdict"):
        decide_again(make_spec(), "2024-02-01")
    with pytest.raises(PerennialError, match="not a date"):
        decide_again(make_spec(), "../2024")
    assert ledger.records("toy") == []


def test_two_at_once_request_one_retraining() -> None:
    write_verdict("2024-02-01")
    decisions: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda: decisions.append(decide_again(make_spec(), "2024-02-01")))
        for _ in range(4)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(decisions) == 4 and all(d["retrain"] for d in decisions)
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


def test_with_mode_approval_a_person_decides_and_the_first_answer_counts() -> None:
    spec = make_policy(mode="approval")
    decision = decide_on("2024-02-01", spec)
    assert (decision["retrain"], decision["proposed"]) == (False, True)
    assert decide_again(spec, "2024-02-01")["proposed"] is True
    assert record_answer(spec, as_of="2024-02-01", approved=True, actor="ada")["retrain"] is True
    assert (
        record_answer(spec, as_of="2024-02-01", approved=False, actor="bob")["retrain"] is True
    )  # the first answer stands
    assert [(r["decision"], r["actor"]) for r in ledger.records("toy")] == [
        ("proposed", "retraining policy"),
        ("requested", "ada"),
    ]
    assert decide_again(spec, "2024-02-01")["decided_by"] == "ada"
    assert decide_on("2024-02-05", spec)["proposed"] is False  # in flight


def test_a_persons_no_is_recorded_with_its_reason_and_starts_the_cooldown() -> None:
    spec = make_policy(mode="approval", cooldown="5 days")
    decide_on("2024-02-01", spec)
    why = " the season (of 2023) is over "
    assert (
        record_answer(spec, as_of="2024-02-01", approved=False, actor="ada", reason=why)["retrain"] is False
    )
    record = ledger.records("toy")[-1]
    assert record["reason"].startswith("rejected by ada: the season (of 2023) is over (drift")
    assert record["evidence"]["answer"] == "rejected by ada: the season (of 2023) is over"
    assert decide_on("2024-02-05", spec)["reason"].startswith(
        "the retraining proposed on 2024-02-01 was rejected by ada: the season (of 2023) is over; cooldown is 5 days ("
    )
    assert decide_on("2024-01-31", spec)["proposed"] is True  # monitored later, but of an earlier date
    assert decide_on("2024-02-06", spec)["proposed"] is True


def test_no_answer_starts_no_cooldown() -> None:
    """Nobody said no: the question is asked again."""
    spec = make_policy(mode="approval", cooldown="5 days")
    decide_on("2024-02-01", spec)
    record_answer(spec, as_of="2024-02-01", approved=False, actor=None)
    assert ledger.records("toy")[-1]["evidence"]["answer"] == "nobody answered in time"
    assert decide_on("2024-02-02", spec)["proposed"] is True


def test_a_policy_that_declines_starts_no_cooldown() -> None:
    spec = make_policy(cooldown="5 days")
    assert decide_on("2024-02-01", spec, verdict="ok")["retrain"] is False
    assert decide_on("2024-02-02", spec)["retrain"] is True


def test_nothing_else_is_proposed_while_an_answer_may_come() -> None:
    spec = make_policy(mode="approval", approval_hours=30)
    decide_on("2024-02-01", spec)
    assert decide_on("2024-02-03", spec)["reason"].startswith(
        "the retraining proposed on 2024-02-01 waits for an answer"
    )
    assert decide_on("2024-02-04", spec)["proposed"] is True


def test_a_backfill_is_no_answer_to_a_proposal() -> None:
    spec = make_policy(mode="approval")
    decide_on("2024-02-01", spec)
    assert decide_again(spec, "2024-02-01", backfill=True)["proposed"] is False
    assert record_answer(spec, as_of="2024-02-01", approved=True, actor="ada")["retrain"] is True


def test_a_decision_of_a_mistyped_year_prevents_none() -> None:
    """Earlier versions recorded such decisions, and the ledger keeps what it has."""
    assert decide_on("2999-01-01")["retrain"] is True
    assert decide_on("2024-02-01")["retrain"] is True
    request = request_in_flight(make_spec(), "2024-02-02")
    assert request is not None and request["partition"] == "2024-02-01"


def test_a_request_is_in_flight_until_its_training_ends() -> None:
    spec = make_policy(abandoned_after="5 days")
    decide_on("2024-02-01", spec)
    assert request_in_flight(spec, "2024-02-01") is None  # only requests before the date
    request = request_in_flight(spec, "2024-02-06")
    assert request is not None and request["partition"] == "2024-02-01"
    assert request_in_flight(spec, "2024-02-07") is None  # abandoned
    record_training("2024-02-01")
    assert request_in_flight(spec, "2024-02-06") is None


def test_nothing_can_be_approved_that_was_not_proposed() -> None:
    decide_on("2024-02-01")
    with pytest.raises(DataError, match="no retraining was proposed"):
        record_answer(make_spec(), as_of="2024-02-01", approved=True, actor="ada")


def test_a_freeze_forbids_with_its_reason() -> None:
    spec = make_policy(freeze=[{"start": "2024-02-01", "end": "2024-02-03", "reason": "the sales"}])
    assert "no retraining from 2024-02-01 to 2024-02-03: the sales" in decide_on("2024-02-03", spec)["reason"]
    assert decide_on("2024-02-04", spec)["retrain"] is True


def test_the_gpu_budget_counts_the_trainings_of_a_month() -> None:
    spec = make_policy(gpu_hours=2)
    for day, hours in (("2024-01-01", 9), ("2024-01-20", 1.5)):
        record_training(day, evidence={"gpu_seconds": hours * 3600})
    assert decide_on("2024-02-05", spec)["retrain"] is True
    record_training("2024-02-05")
    record_training("2024-02-06", evidence={"gpu_seconds": 1800})
    assert "2.0 hours within 30 days" in decide_on("2024-02-14", spec)["reason"]


@pytest.mark.parametrize(("state", "retrain"), [("running", False), ("passed", False), ("failed", True)])
def test_the_trial_of_a_challenger_ends_first(state: str, retrain: bool) -> None:
    decision = decide_on("2024-02-01", trial={"version": "7", "days": 3, "state": state})
    assert decision["retrain"] is retrain
    assert retrain or "version 7 is on trial" in decision["reason"]


def test_new_rows_another_spec_and_other_code_fire_where_the_policy_says_so() -> None:
    result = {"verdict": "ok", "new_rows": 0.6, "changed": ["spec", "code"]}
    assert decide_on("2024-02-01", **result)["retrain"] is False
    decision = decide_on("2024-02-02", make_policy(triggers=["rows", "spec"]), **result)
    assert decision["triggers"] == ["rows", "spec"] and "60% as many new rows" in decision["reason"]


def test_a_training_that_left_no_record_closes_its_request() -> None:
    spec = make_spec()
    assert not close_request(spec, as_of="2024-02-01", reason="killed"), "there is none"
    assert decide_on("2024-02-01")["retrain"]
    assert request_in_flight(spec, "2024-02-02") is not None
    assert not close_request(spec, as_of="2024-01-31", reason="killed"), "another date's"
    assert close_request(
        spec, as_of="2024-02-01", reason="the pod was evicted\n  What to do: check the nodes"
    )
    record = ledger.records("toy")[-1]
    assert (record["kind"], record["decision"], record["partition"]) == ("training", "failed", "2024-02-01")
    assert record["reason"] == "the pod was evicted"
    assert request_in_flight(spec, "2024-02-02") is None
    assert not close_request(spec, as_of="2024-02-01", reason="killed"), "once"


OK = {"verdict": "ok", "reason": "all is well"}


def test_a_regular_retraining_is_due_some_days_after_the_last_one() -> None:
    spec = make_policy(triggers=["gain", "regular"], regular="4 days", cooldown="7 days")
    calm = OK | {"signals": make_signals("ok")}
    assert decide_on("2024-01-04", spec, **calm)["retrain"] is False, (
        "three days after the champion's training"
    )
    first = decide_on("2024-01-05", spec, **calm)
    assert first["retrain"] is True and first["triggers"] == ["regular"]
    assert first["reason"] == "regular: the last training was as of 2024-01-01, 4 days (regular) ago or more"
    record_training("2024-01-05")
    assert decide_on("2024-01-08", spec, **calm)["retrain"] is False
    # It starts no cooldown: a signal two days later is answered.
    signalled = decide_on("2024-01-08", spec, **OK | {"signals": make_signals("bad", 0.1)})
    assert signalled["retrain"] is True and signalled["triggers"] == ["gain"]
    record_training("2024-01-08")
    # Within the cooldown of the signal's training it does not wait, though the signal does.
    after = decide_on("2024-01-12", spec, **OK | {"signals": make_signals("bad", 0.1)})
    assert after["retrain"] is True and after["triggers"] == ["regular"]
    since = [r["evidence"]["since"] for r in ledger.records("toy") if r["decision"] == Decision.REQUESTED]
    assert since == ["", "2024-01-31", "2024-01-31"], "it responds to the change that the signal shows"


@pytest.mark.parametrize("signal", ["freshness", "labels"])
def test_no_regular_retraining_without_new_rows_or_labels_or_a_champion(signal: str) -> None:
    spec = make_policy(triggers=["regular"])
    stalled = make_signals("ok", **{signal: {"state": "bad", "reason": "nothing arrived"}})
    assert decide_on("2024-02-01", spec, **OK | {"signals": stalled})["triggers"] == []
    assert decide_on("2024-02-02", spec, **OK | {"champion_as_of": None})["triggers"] == []
    assert decide_on("2024-02-03", make_policy(triggers=["gain"]), **OK)["triggers"] == []
    assert decide_on("2024-02-04", spec, **OK)["triggers"] == ["regular"]


def test_regular_retrainings_leave_a_quarter_of_the_budget_to_signals() -> None:
    spec = make_policy(triggers=["gain", "regular"], regular="1 day", budget=4, cooldown="0 days")
    for day in range(11, 14):
        assert decide_on(f"2024-01-{day}", spec, **OK)["retrain"] is True
        record_training(f"2024-01-{day}")
    kept = decide_on("2024-01-14", spec, **OK)
    assert kept["retrain"] is False and "the rest of the budget of 4 is kept" in kept["reason"]
    assert decide_on("2024-01-15", spec, **OK | {"signals": make_signals("bad", 0.1)})["retrain"] is True
    record_training("2024-01-15")
    used = decide_on("2024-01-16", spec, **OK | {"signals": make_signals("bad", 0.1)})
    assert used["retrain"] is False and "the budget is used up: 4" in used["reason"]


def test_nobody_is_asked_regularly_unless_the_spec_says_so() -> None:
    def triggers(**policy: object) -> list[str]:
        return list(RetrainingSpec.model_validate(policy).triggers)

    assert "regular" in triggers() and "regular" in triggers(mode="auto")
    assert "regular" not in triggers(mode="approval")
    assert triggers(mode="approval", triggers=["regular"]) == ["regular"]
