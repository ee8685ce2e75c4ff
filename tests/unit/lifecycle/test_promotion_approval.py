"""Where the spec asks for an approval, no version becomes champion without that of a person who may give it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from perennial.core.errors import DataError
from perennial.lifecycle import promotion, retraining, trials
from perennial.lifecycle.promotion_approval import check_answer, record_answer
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps.promote import promote
from perennial.steps.train import train
from perennial.storage import ledger
from perennial.storage.ledger import LedgerKind
from support import toys

Make = Callable[..., ModelSpec]
APPROVAL: dict[str, Any] = {"gate": {"approval": {"who": ["ada", "grace"], "hours": 5}}}


@pytest.fixture
def trained(make_model: Make) -> ModelSpec:
    """A model with a version that passed the gate, and waits."""
    spec = make_model(training={"rounds": 5}, **APPROVAL)
    toys.publish(spec)
    assert train(spec, as_of=toys.LAST, reason="the season began", actor="grace")["gate"]["passed"]
    return spec


def champion(spec: ModelSpec) -> str | None:
    version = registry.get_version_by_alias(spec.name)
    return version.version if version else None


def test_without_an_approval_nothing_is_promoted(trained: ModelSpec) -> None:
    result = promote(trained, as_of=toys.LAST, actor="scheduler")
    assert (result["promoted"], champion(trained)) == (False, None)
    assert result["reason"] == "version 1 passed the gate, and waits for the approval of ada, grace"
    asked = promotion.open_question(trained, as_of=toys.LAST)
    assert asked is not None and asked.requested_by == "grace"
    registry.remove_alias(trained.name, asked.version, "challenger")
    assert {*promotion.in_use(trained)} == {asked.version}, "nothing of it is deleted while it waits"
    shown = "\n".join(asked.evidence)
    for text in (
        "Version 1 was trained as of",
        "the season began",
        "log loss",
        "Gate: ",
        "tables published@",
    ):
        assert text in shown
    record_answer(trained, asked, approved=True, actor="ada", reason="looks right")
    assert promotion.open_question(trained, as_of=toys.LAST) is None
    assert promote(trained, as_of=toys.LAST, actor="scheduler")["promoted"] and champion(trained) == "1"
    (approval,) = ledger.records(trained.name, LedgerKind.APPROVAL)
    assert (approval["decision"], approval["actor"], approval["model_version"]) == ("approved", "ada", "1")
    assert approval["evidence"]["evidence_digest"] == asked.digest
    assert approval["evidence"]["evidence"] == list(asked.evidence)
    (promoted,) = ledger.records(trained.name, LedgerKind.PROMOTION)
    assert promoted["evidence"]["approved_by"] == "ada"


@pytest.mark.parametrize("actor", ["ada", None], ids=["a no", "no answer"])
def test_a_no_and_silence_keep_the_version_from_promotion(trained: ModelSpec, actor: str | None) -> None:
    asked = promotion.open_question(trained, as_of=toys.LAST)
    assert asked is not None
    record_answer(trained, asked, approved=False, actor=actor, reason="too few rows")
    later = record_answer(trained, asked, approved=True, actor="ada", reason="after all")
    assert later["decision"] == "declined", "the first answer counts"
    result = promote(trained, as_of=toys.LAST, actor="scheduler")
    assert not result["promoted"] and champion(trained) is None
    assert ("too few rows" if actor else retraining.NO_ANSWER) in result["reason"]


def test_an_answer_counts_once_and_for_one_training_only(trained: ModelSpec) -> None:
    asked = promotion.open_question(trained, as_of=toys.LAST)
    assert asked is not None
    record_answer(trained, asked, approved=True, actor="ada", reason="looks right")
    train(trained, as_of=toys.LAST, force=True)
    result = promote(trained, as_of=toys.LAST, actor="scheduler")
    assert not result["promoted"] and "version 2 passed the gate, and waits" in result["reason"]


@pytest.mark.parametrize(
    ("actor", "names", "reason", "cause"),
    [
        ("eve", ("eve", "7"), "because", "eve is not among those who may approve: ada, grace"),
        ("grace", ("grace", "2"), "because", "grace requested this training"),
        ("Ada L.", ("Ada L.", "ada"), "  ", "has no reason"),
    ],
)
def test_who_may_not_answer_is_refused(
    trained: ModelSpec, actor: str, names: tuple[str, ...], reason: str, cause: str
) -> None:
    asked = promotion.open_question(trained, as_of=toys.LAST)
    assert asked is not None
    with pytest.raises(DataError, match=cause):
        check_answer(trained, asked, actor=actor, names=names, reason=reason)
    if "requested" in cause:
        together = replace(asked, requested_by="retraining policy, grace")
        with pytest.raises(DataError, match=cause):
            check_answer(trained, together, actor=actor, names=names, reason=reason)
        with_comma = replace(asked, requested_by="retraining policy, Doe, Grace")
        with pytest.raises(DataError, match="Doe, Grace requested this training"):
            check_answer(
                trained, with_comma, actor="Doe, Grace", names=("Doe, Grace", "grace"), reason=reason
            )
    check_answer(trained, asked, actor="Ada L.", names=("Ada L.", "ada"), reason="because")
    chosen = {"who": ["ada"], "reasons": ["reviewed"]}
    policy = trained.gate.model_copy(update={"approval": type(trained.gate.approval)(**chosen)})
    strict = trained.model_copy(update={"gate": policy})
    with pytest.raises(DataError, match=r"none of gate\.approval\.reasons"):
        check_answer(strict, asked, actor="ada", names=("ada",), reason="because")


def test_the_question_compares_champion_and_challenger(trained: ModelSpec) -> None:
    """The second training has more rounds, and is better on the same rows."""
    first = promotion.open_question(trained, as_of=toys.LAST)
    assert first is not None and not any("hampion (version" in line for line in first.evidence)
    record_answer(trained, first, approved=True, actor="ada", reason="looks right")
    assert promote(trained, as_of=toys.LAST, actor="scheduler")["promoted"]
    more = trained.training.model_copy(update={"rounds": 25})
    after = trained.model_copy(update={"training": more})
    result = train(after, as_of=toys.LAST)
    assert result["gate"]["passed"], result["gate"]["reasons"]
    asked = promotion.open_question(after, as_of=toys.LAST)
    assert asked is not None
    shown = "\n".join(asked.evidence)
    new, old = (result["intervals"][model]["log_loss"] for model in ("metrics", "champion"))
    assert f"log loss {new[0]:.4g} ({new[1]:.4g} to {new[2]:.4g}), champion {old[0]:.4g} (" in shown
    assert f"better by {result['gate']['against_champion']['improvement']:.1%}" in shown  # type: ignore[index]
    name, share, before = result["importance_changes"][0].values()
    champions = registry.load_json_artifact(registry.get_version(trained.name, "1"), "importance.json")
    assert before == champions[name] != share
    assert f"largest differences: {name} {share:.1%} (champion {before:.1%})" in shown
    assert "Champion (version 1): tables published@" in shown and f"spec {trained.digest}" in shown
    assert f"spec {after.digest}, code " in shown


def test_a_rejected_challenger_is_no_question(make_model: Make) -> None:
    gate = {**APPROVAL["gate"], "bounds": {"auc": {"min": 1.0}}}
    spec = make_model(training={"rounds": 2}, gate=gate)
    toys.publish(spec)
    train(spec, as_of=toys.LAST)
    assert promotion.open_question(spec, as_of=toys.LAST) is None
    assert "waits for" not in promote(spec, as_of=toys.LAST, actor="scheduler")["reason"]


def test_a_version_is_asked_about_after_its_trial(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_model(training={"rounds": 5}, retraining={"trial": "3 days"}, **APPROVAL)
    toys.publish(spec)
    toys.let_all_pass(monkeypatch)
    train(spec, as_of=toys.LAST)
    asked = promotion.open_question(spec, as_of=toys.LAST)
    assert asked is not None, "a first champion needs no trial"
    record_answer(spec, asked, approved=True, actor="ada", reason="looks right")
    assert promote(spec, as_of=toys.LAST, actor="scheduler")["promoted"]
    train(spec, as_of=toys.LAST, force=True)
    assert promotion.open_question(spec, as_of=toys.LAST) is None, "its trial comes first"
    assert not promote(spec, as_of=toys.LAST, actor="scheduler")["promoted"]
    started = trials.active_trial(spec)
    assert started is not None and started["model_version"] == "2"
    ledger.append(
        spec.name, kind=LedgerKind.TRIAL, decision=ledger.Decision.PASSED, reason="better", actor="trial policy",
        partition=toys.LAST, model_version="2",
    )  # fmt: skip
    after = promotion.open_question(spec, as_of=toys.LAST)
    assert after is not None and after.version == "2"
    assert "waits for the approval" in promote(spec, as_of=toys.LAST, actor="scheduler")["reason"]
