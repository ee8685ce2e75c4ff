"""The approval of a promotion by a person, where ``gate.approval`` asks for one.

A version that passed the gate, and its trial if there is one, becomes champion only with an approval in the ledger. The
record has the digest of what the person saw. Whoever requested the training cannot approve it, and no answer in time is
a no.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from perennial.core.errors import DataError
from perennial.lifecycle.retraining import NO_ANSWER
from perennial.modeling import training_records
from perennial.spec.constraints import metric_in_words
from perennial.spec.model_spec import ModelSpec
from perennial.spec.policies import ApprovalSpec
from perennial.storage import ledger, locks
from perennial.storage.ledger import Decision, LedgerKind, LedgerRecord


@dataclass(frozen=True)
class Question:
    """What a person is asked.

    Attributes:
        version: version that is to become champion.
        run_id: MLflow run that trained it.
        as_of: partition date of its training.
        requested_by: who requested the training, and so cannot approve.
        evidence: what the decision rests on, a line each.
        report: URI of the training's report; empty if there is none.
    """

    version: str
    run_id: str
    as_of: str
    requested_by: str
    evidence: tuple[str, ...]
    report: str

    @property
    def digest(self) -> str:
        """SHA-256 of the evidence."""
        return hashlib.sha256("\n".join(self.evidence).encode()).hexdigest()


def question(spec: ModelSpec, training: Mapping[str, Any]) -> Question:
    """The question whether a version becomes champion.

    Args:
        spec: the model.
        training: the result of its training.
    """
    version, run_id = str(training["version"]), str(training["run_id"])
    records = [
        r
        for r in ledger.records(spec.name, LedgerKind.TRAINING)
        if r["model_version"] == version and r["evidence"].get("run_id") == run_id
    ]
    request = records[-1]["evidence"].get("request") or {} if records else {}
    return Question(
        version,
        run_id,
        training["as_of"],
        str(request.get("actor", "")),
        tuple(_evidence(spec, training, request)),
        str(training.get("report") or ""),
    )


def _evidence(spec: ModelSpec, training: Mapping[str, Any], request: Mapping[str, Any]) -> list[str]:
    """What speaks for and against a version, a line each."""
    version, gate = str(training["version"]), training["gate"]
    recorded = training_records.find(spec.name, version, str(training["run_id"]))
    tags = recorded.tags if recorded else {}
    lines = [f"Version {version} was trained as of {training['as_of']}: {request.get('reason') or 'by hand'}"]
    if request.get("actor"):
        lines.append(f"Requested by {request['actor']}")
    if spec.risk is not None:
        without = "".join(f"; without {name}: {why}" for name, why in spec.risk.without.items())
        lines.append(f"Risk: {spec.risk.level}{without}")
    if compared := gate["against_champion"]:
        lines.append(
            f"{metric_in_words(spec.metric)} {compared['loss']:.4g}, of the champion (version {gate['champion']}) "
            f"{compared['other']:.4g}: better by {compared['improvement']:.1%} "
            f"({spec.gate.confidence:.0%} interval {compared['low']:.1%} to {compared['high']:.1%})"
        )
    lines += _metric_lines(spec, training)
    lines += [f"Gate: {reason}" for reason in gate["reasons"]]
    lines += [f"Slice: {sentence}" for sentence in training.get("worse_slices") or ()]
    if changes := training.get("importance_changes"):
        shares = ", ".join(f"{c['feature']} {c['share']:.1%} (champion {c['champion']:.1%})" for c in changes)
        lines.append(f"Importance of features, largest differences: {shares}")
    lines.append(f"Model {training['digest']}, {_made_of(tags)}")
    if card := recorded.digests.get(training_records.CARD_FILE) if recorded else None:
        lines.append(f"Model card {card}")
    if gate["champion"]:
        trainings = [r for r in training_records.all_records(spec.name) if r.version == gate["champion"]]
        lines.append(
            f"Champion (version {gate['champion']}): {_made_of(trainings[-1].tags if trainings else {})}"
        )
    return lines


def _metric_lines(spec: ModelSpec, training: Mapping[str, Any]) -> Iterator[str]:
    """The metrics on the held-out rows with their intervals, and those of the champion on the same rows."""
    intervals = training.get("intervals") or {}  # trainings of earlier versions stored none
    yield (
        f"On held-out rows, with {spec.gate.confidence:.0%} intervals:" if intervals else "On held-out rows:"
    )
    for name, value in sorted(training["metrics"].items()):
        of_models = [intervals.get(model, {}).get(name) for model in ("metrics", "champion")]
        shown = [f"{v:.4g} ({low:.4g} to {high:.4g})" for v, low, high in filter(None, of_models)]
        yield f"{metric_in_words(name)} {', champion '.join(shown) or f'{value:.4g}'}"


def _made_of(tags: Mapping[str, str]) -> str:
    """The versions of data, spec and code that a version was made from, in words."""
    return (
        f"tables {tags.get('dataset_version', 'unknown')}, spec {tags.get('spec_digest', 'unknown')}, "
        f"code {tags.get('code_version') or 'unknown'}"
    )


def missing(spec: ModelSpec, training: Mapping[str, Any]) -> str:
    """Why a version must not become champion yet, or at all; empty if it may.

    Args:
        spec: the model.
        training: the result of its training.
    """
    if spec.gate.approval is None:
        return ""
    version, answered = str(training["version"]), answer(spec, training)
    if answered is None:
        who = ", ".join(spec.gate.approval.who)
        return f"version {version} passed the gate, and waits for the approval of {who}"
    if answered["decision"] == Decision.DECLINED:
        return f"the promotion of version {version} was {answered['reason']}"
    return ""


def answer(spec: ModelSpec, training: Mapping[str, Any]) -> LedgerRecord | None:
    """The answer to the question whether a version becomes champion; None if there is none."""
    answers = [
        r
        for r in ledger.records(spec.name, LedgerKind.APPROVAL)
        if r["model_version"] == str(training["version"])
        and r["evidence"].get("run_id") == training["run_id"]
    ]
    return answers[-1] if answers else None


def approver(spec: ModelSpec, training: Mapping[str, Any]) -> dict[str, str]:
    """Who approved a version, for the evidence of its promotion; nothing where no approval is asked for."""
    answered = answer(spec, training) if spec.gate.approval else None
    return {"approved_by": answered["actor"]} if answered else {}


def check_answer(
    spec: ModelSpec, asked: Question, *, actor: str, names: tuple[str, ...], reason: str
) -> None:
    """Refuse an answer of somebody who may not give it, or without a reason.

    Args:
        spec: the model.
        asked: the question.
        actor: who answered, as the ledger names people.
        names: all names of that person, such as the name and the id in Airflow.
        reason: why, in the person's words.

    Raises:
        DataError: the answer does not count.
    """
    policy = _policy(spec)
    cause = ""
    if not {actor, *names} & set(policy.who):
        cause = f"{actor} is not among those who may approve: {', '.join(policy.who)}"
    elif _is_among({actor, *names}, asked.requested_by or ""):
        cause = f"{actor} requested this training, and somebody else must approve it"
    elif not reason.strip():
        cause = "the answer has no reason"
    elif policy.reasons and reason not in policy.reasons:
        cause = f"the reason is none of gate.approval.reasons: {', '.join(policy.reasons)}"
    if cause:
        raise DataError(cause, "nothing was decided: answer again", model=spec.name, partition=asked.as_of)


def _is_among(names: set[str], requested_by: str) -> bool:
    """Whether a person has one of the names of those who requested a training; a name may have a comma, too."""
    return any(f", {name}, " in f", {requested_by}, " for name in names if name)


def record_answer(
    spec: ModelSpec, asked: Question, *, approved: bool, actor: str | None, reason: str = ""
) -> LedgerRecord:
    """Record the answer to a question; only the first one counts.

    Args:
        spec: the model.
        asked: the question.
        approved: the answer.
        actor: who answered; None if nobody did in time.
        reason: why, in the person's words.
    """
    words = f"{'approved' if approved else 'declined'} by {actor}: {reason.strip()}" if actor else NO_ANSWER
    with locks.hold(f"approve-{spec.name}"):
        earlier = answer(spec, {"version": asked.version, "run_id": asked.run_id})
        return earlier or ledger.append(
            spec.name,
            kind=LedgerKind.APPROVAL,
            decision=Decision.APPROVED if approved and actor else Decision.DECLINED,
            reason=words,
            actor=actor or NO_ANSWER,
            partition=asked.as_of,
            model_version=asked.version,
            evidence={
                "run_id": asked.run_id,
                "requested_by": asked.requested_by,
                "evidence_digest": asked.digest,
                "evidence": list(asked.evidence),
            },
        )


def _policy(spec: ModelSpec) -> ApprovalSpec:
    assert spec.gate.approval is not None
    return spec.gate.approval
