"""Decisions explained from the ledger: with their evidence, and what followed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from perennial.core.errors import DataError
from perennial.lifecycle.explanation import explain_decision
from perennial.lifecycle.retraining import record_answer
from perennial.storage import ledger
from support.decisions import WORSE, decide_on, make_policy, make_signals, record_training
from support.monitored import World, make_spec


@pytest.fixture(autouse=True)
def _home(make_world: Callable[..., World]) -> None:
    make_world()


def test_the_evidence_of_a_proposal_is_given_once() -> None:
    spec = make_policy(mode="approval")
    decide_on("2024-02-01", spec, signals=make_signals("bad", 0.1))
    record_answer(spec, as_of="2024-02-01", approved=False, actor=None)
    lines = explain_decision(spec, "2024-02-01")
    assert (
        lines[0]
        == "2024-02-01: a retraining was proposed by the retraining policy (run started by test) (version 1)."
    )
    assert lines[-1] == "2024-02-01: nobody answered in time."
    assert sum(line.startswith("  gain:") for line in lines) == 1


def test_the_reason_of_a_no_is_given_whole() -> None:
    spec = make_policy(mode="approval")
    decide_on("2024-02-01", spec)
    record_answer(
        spec, as_of="2024-02-01", approved=False, actor="ada", reason="the season (of 2023) is over"
    )
    assert (
        explain_decision(spec, "2024-02-01")[-1]
        == "2024-02-01: rejected by ada: the season (of 2023) is over."
    )


def test_a_date_without_a_decision_gets_the_latest_one_and_what_followed() -> None:
    decide_on("2024-02-01", verdict="ok", signals=make_signals("bad", 0.1, performance=WORSE))
    record_training("2024-02-01")
    text = "\n".join(explain_decision(make_spec(), "2024-02-03"))
    assert "There is no decision for 2024-02-03 itself" in text
    assert (
        "2024-02-01: a retraining was requested by the retraining policy (run started by test) (version 1)"
        in text
    )
    assert "It began on 2024-01-30" in text and "performance: BAD: worse" in text
    assert "was rejected by the gate" in text
    with pytest.raises(DataError, match="there is no decision on a retraining"):
        explain_decision(make_spec(), "2024-01-01")


def test_a_training_in_spite_of_a_declined_one_names_who_requested_it() -> None:
    decide_on("2024-02-01", verdict="ok")
    reason_of_verdict = ledger.records("toy")[-1]["reason"]
    for actor, reason in (("ada", "the sales began"), ("scheduler", reason_of_verdict)):
        request = {"actor": actor, "reason": reason}
        record_training("2024-02-01", reason="-0.7%", model_version="2", evidence={"request": request})
    assert explain_decision(make_spec(), "2024-02-01")[-3:] == [
        "  Version 2 was rejected by the gate: -0.7%",
        "    It was requested by ada: the sales began",
        "  Version 2 was rejected by the gate: -0.7%",
    ]
