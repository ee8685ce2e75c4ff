"""The champion, read from MLflow and compared with the ledger. Every step that uses the champion reads it here.

Only promotion and rollback move the alias ``champion``, and each records it in the ledger. Anybody who can write to
MLflow can move or remove it as well, or delete the version. Such a deviation is recorded in the ledger; what happens
then is the policy ``gate.external_change``:

- ``refuse``: nothing is scored until a person decides.
- ``follow``: the version that the alias points to is adopted, if the ledger has its training.
- ``restore``: the alias is set back to the champion of the ledger; as ``refuse`` for a step that may not move it.

Until a deviation is resolved, monitoring and training use the champion of the ledger.

A promotion or a rollback first writes what it is about to do (`intent_uri`), then moves the alias, and records that
last. If it is killed in between, the next step that reads the champion makes the record.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from perennial.core.errors import ArtifactError, LockHeldError, RegistryRequestError
from perennial.core.partitions import PartitionRange
from perennial.core.settings import settings
from perennial.lifecycle import trials
from perennial.modeling import registry, training_records
from perennial.modeling.registry import ModelVersion
from perennial.modeling.training_records import TrainingRecord
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger, locks, object_store
from perennial.storage.ledger import Decision, LedgerKind, LedgerRecord

log = logging.getLogger(__name__)

#: Kinds of ledger records about a change of the champion, with their decision.
CHAMPION_CHANGES = {
    LedgerKind.PROMOTION: Decision.PROMOTED,
    LedgerKind.ROLLBACK: Decision.ROLLED_BACK,
    LedgerKind.EXTERNAL_CHANGE: Decision.FOLLOWED,
}


def changes(records: Iterable[LedgerRecord]) -> list[LedgerRecord]:
    """The records, of those of the kinds `CHAMPION_CHANGES`, of changes of the champion."""
    return [record for record in records if record["decision"] in CHAMPION_CHANGES.values()]


def predecessor(of: Sequence[LedgerRecord], version: str | None) -> str | None:
    """The champion that a version replaced when it was promoted.

    Args:
        of: changes of the champion, in order.
        version: the version.
    """
    for record in reversed(of):
        if record["model_version"] == version and record["decision"] == Decision.PROMOTED:
            return str(record["evidence"].get("previous") or "") or None
    return None


class Champion(NamedTuple):
    """The champion of the ledger.

    Attributes:
        version: the version, with the tags that the ledger recorded; None before the first promotion.
        deviation: how MLflow differs from the ledger, if that is not resolved; empty otherwise.
    """

    version: ModelVersion | None
    deviation: str = ""


@dataclass(frozen=True)
class ChampionChange:
    """A change of the champion that promotion or rollback is about to make.

    Attributes:
        version: the version that becomes champion.
        after_move: sequence number of the ledger's change before it.
        kind: kind of its ledger record.
        reason: why, for the ledger.
        actor: who or what changes it, for the ledger.
        evidence: of the ledger record.
        partition: the partition date as of which the version was trained; None for a rollback.
    """

    version: str
    after_move: int
    kind: LedgerKind
    reason: str
    actor: str
    evidence: dict[str, Any]
    partition: str | None = None


@dataclass(frozen=True)
class ChampionState:
    """The champion in MLflow, and in the ledger.

    Attributes:
        alias: the version that the alias points to in MLflow.
        records: the ledger's records about the champion, in order.
        interrupted: the change that moved the alias and was killed before its record, if there is one.
        deviation: how the alias differs from the ledger; empty if it does not, or if such a change explains it.
    """

    alias: ModelVersion | None
    records: list[LedgerRecord]
    interrupted: ChampionChange | None = None
    deviation: str = ""

    @property
    def champion(self) -> str | None:
        """The version that the alias points to."""
        return self.alias.version if self.alias else None

    @property
    def changes(self) -> list[LedgerRecord]:
        """The records of changes of the champion, in order."""
        return changes(self.records)

    @property
    def recorded(self) -> str | None:
        """The champion according to the ledger."""
        return self.changes[-1]["model_version"] if self.changes else None

    @property
    def recorded_run(self) -> str:
        """The MLflow run that trained the ledger's champion; empty if the ledger does not say."""
        return str(self.changes[-1]["evidence"].get("run_id", "")) if self.changes else ""

    @property
    def last_change(self) -> int:
        """The sequence number of the ledger's last change of the champion; 0 before the first."""
        return self.changes[-1]["sequence"] if self.changes else 0


def get_champion(spec: ModelSpec, *, partition: str, actor: str) -> Champion:
    """Get the champion of the ledger, and compare it with MLflow.

    A deviation is recorded in the ledger, once, and treated as ``gate.external_change`` says. A change that was killed
    before its record is recorded.

    Args:
        spec: the model.
        partition: the partition date, or range, that is processed, for the ledger.
        actor: the step that asks, for the ledger.

    Raises:
        RegistryError: MLflow cannot be reached.
        ArtifactError: the ledger has no training of the champion.
    """
    state = finish_killed(spec, read_state(spec))
    if state.deviation:
        with locks.hold(f"promote-{spec.name}"):
            # Read again: a promotion may have moved the champion between the two reads.
            state = resolve(spec, read_state(spec), partition=partition, actor=actor)
    return Champion(_trusted_version(spec, state), state.deviation)


def get_serving_champion(spec: ModelSpec, *, partition: str, actor: str) -> ModelVersion | None:
    """Get the champion to score with; None before the first promotion.

    Args:
        spec: the model.
        partition: the partition date, or range, that is scored.
        actor: the step that asks, for the ledger.

    Raises:
        RegistryError: MLflow cannot be reached.
        ArtifactError: MLflow's champion is not the ledger's, or the ledger has no training of it.
    """
    champion = get_champion(spec, partition=partition, actor=actor)
    if champion.deviation:
        raise deviation_error(spec, champion, partition)
    return champion.version


def deviation_error(spec: ModelSpec, champion: Champion, partition: str | None = None) -> ArtifactError:
    """The error of a step that refuses to work with a champion that deviates from the ledger."""
    rollback = f"perennial run rollback --model {spec.name} --reason '…'"
    if champion.version is None:
        remedy = (
            "restore the lake's ledger from its backup; or, if the version does not belong to this lake, remove the "
            f"alias champion of {spec.name} in MLflow, or give the model another name"
        )
    else:
        remedy = (
            f"put version {champion.version.version} back ({rollback}), or choose another version (add --to-version "
            "with its number, also to adopt the one that was set by hand); if MLflow lost versions, restore its "
            "backup, or train again. gate.external_change: follow or restore does this without asking"
        )
    return ArtifactError(champion.deviation, remedy, model=spec.name, partition=partition)


def read_state(spec: ModelSpec) -> ChampionState:
    """Read the champion from the ledger and from MLflow, and compare them; nothing is recorded.

    Only a caller that holds the lock of promotions can rely on a deviation.
    """
    # The ledger first: a promotion that ends meanwhile is then explained by its intent.
    records = ledger.records(spec.name, *CHAMPION_CHANGES)
    state = ChampionState(registry.get_champion(spec), records)
    if state.champion == state.recorded and state.champion is None:
        return state
    if state.alias and state.champion == state.recorded:
        run = state.recorded_run
        if run in ("", state.alias.run_id):
            return state
    intent = _read_intent(spec, state)
    if intent and state.alias and state.champion == intent.version and _find_training(state.alias):
        return replace(state, interrupted=intent)
    return replace(state, deviation=_describe(spec, state))


def write_intent(spec: ModelSpec, change: ChampionChange) -> None:
    """Write what is about to be changed, before the alias is moved; the caller holds the lock of promotions.

    With it, the next step can distinguish a change that was killed before its record from one by hand.
    """
    object_store.write_text(intent_uri(spec), json.dumps(asdict(change)))


def _read_intent(spec: ModelSpec, state: ChampionState) -> ChampionChange | None:
    """What an unfinished step was about to change after the last change; None if there is nothing."""
    try:
        content = json.loads(object_store.read_text(intent_uri(spec)))
        change = ChampionChange(**content | {"kind": LedgerKind(content["kind"])})
        return change if change.after_move == state.last_change else None
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None  # a damaged file explains nothing: the deviation is then reported


def record_change(spec: ModelSpec, change: ChampionChange) -> None:
    """Record a change of the champion, and end what it ends; the caller holds the lock of promotions."""
    ledger.append(
        spec.name,
        kind=change.kind,
        decision=CHAMPION_CHANGES[change.kind],
        reason=change.reason,
        actor=change.actor,
        evidence=change.evidence,
        partition=change.partition,
        model_version=change.version,
    )
    trials.cancel_outdated_trial(spec, champion=change.version, actor=change.actor)
    registry.remove_alias(spec.name, change.version, "challenger")


def finish_interrupted(spec: ModelSpec, state: ChampionState) -> ChampionState:
    """Record the change that was killed before its record, if there is one; the caller holds the lock of promotions.

    Args:
        spec: the model.
        state: of `read_state`.

    Returns:
        The state afterwards.
    """
    change = state.interrupted
    if change is None:
        return state
    record_change(spec, replace(change, evidence=change.evidence | {"interrupted": True}))
    return read_state(spec)


def _describe(spec: ModelSpec, state: ChampionState) -> str:
    """How the alias differs from the ledger."""
    alias, recorded = state.champion, state.recorded
    if recorded is None and state.alias and not registry.is_ours(state.alias):
        return _taken(spec, state.alias.version)
    if recorded is None:
        return f"MLflow's champion is version {alias}, and the ledger has no promotion of this model"
    known = f"the ledger's champion is version {recorded}"
    if alias == recorded:
        return f"version {recorded}, the champion, was replaced in MLflow by another version of that number"
    lost = "" if registry.find_version(spec.name, recorded) else ", which was deleted in MLflow"
    if alias is None:
        return f"the alias champion was removed in MLflow; {known}{lost}"
    return f"the alias champion was moved in MLflow to version {alias}; {known}{lost}"


def intent_uri(spec: ModelSpec) -> str:
    """The file that names the version that a step is about to make champion."""
    return f"{settings().lake}/promotions/{spec.name}.json"


def finish_killed(spec: ModelSpec, state: ChampionState) -> ChampionState:
    """As `finish_interrupted`, for a caller without the lock; if that is held, the change is still being made."""
    if state.interrupted:
        with contextlib.suppress(LockHeldError), locks.hold(f"promote-{spec.name}", timeout=0):
            return finish_interrupted(spec, read_state(spec))
    return state


def resolve(spec: ModelSpec, state: ChampionState, *, partition: str | None, actor: str) -> ChampionState:
    """Record a deviation, and treat it as the policy says; the caller holds the lock of promotions.

    A change that was killed before its record is recorded first.

    Args:
        spec: the model.
        state: of `read_state`.
        partition: the partition date, or range, that is processed, for the ledger.
        actor: the step that found it, for the ledger.

    Returns:
        The state afterwards; with a deviation if a person has to decide.
    """
    state = finish_interrupted(spec, state)
    if not state.deviation:
        return state
    report(spec, state, partition=partition, actor=actor)
    policy = spec.gate.external_change
    if policy == "follow" and state.alias is not None:
        record = _find_training(state.alias)
        if record is not None and record.digest:
            evidence = {"previous": state.recorded, "run_id": record.run_id, "digest": record.digest}
            _append(spec, state, Decision.FOLLOWED, "adopted", partition, actor, state.champion, evidence)
            trials.cancel_outdated_trial(spec, champion=state.champion, actor=actor)
            registry.remove_alias(spec.name, str(state.champion), "challenger")
            return read_state(spec)
    if policy == "restore" and state.recorded is not None and state.champion != state.recorded:
        version = registry.find_version(spec.name, state.recorded)
        if version is not None and state.recorded_run in ("", version.run_id):
            try:
                registry.set_alias(spec.name, version.version, "champion")
            except (
                RegistryRequestError
            ) as error:  # MLflow may let only the identity of promotions move the alias
                log.warning("The champion was not put back: %s", error)
                return replace(state, deviation=f"{state.deviation}; it was not put back: {error.cause}")
            _append(spec, state, Decision.RESTORED, "put back", partition, actor, state.recorded, {})
            return read_state(spec)
    return state


def report(spec: ModelSpec, state: ChampionState, *, partition: str | None, actor: str) -> None:
    """Record a deviation in the ledger, unless its last record about the champion says the same."""
    last = state.records[-1] if state.records else None
    if last is None or last["decision"] != Decision.REPORTED or last["reason"] != state.deviation:
        _append(spec, state, Decision.REPORTED, "", partition, actor, state.champion, {})


def _append(
    spec: ModelSpec,
    state: ChampionState,
    decision: Decision,
    outcome: str,
    partition: str | None,
    actor: str,
    version: str | None,
    evidence: dict[str, str | None],
) -> None:
    """Record what was done about a deviation."""
    suffix = f": version {version} was {outcome} (gate.external_change)" if outcome else ""
    ledger.append(
        spec.name,
        kind=LedgerKind.EXTERNAL_CHANGE,
        decision=decision,
        actor=actor,
        reason=f"{state.deviation}{suffix}",
        partition=partition,
        model_version=version,
        evidence={"ledger": state.recorded, "alias": state.champion} | evidence,
    )


def _trusted_version(spec: ModelSpec, state: ChampionState) -> ModelVersion | None:
    """The champion of the ledger, or the one that an unfinished step was about to set."""
    if not state.deviation:
        return registry.as_recorded(state.alias) if state.alias else None
    if state.recorded is None:
        return None
    return _recorded_version(spec, state)


def _recorded_version(spec: ModelSpec, state: ChampionState) -> ModelVersion:
    """The champion of the ledger, which MLflow may not have any more."""
    records = [
        r
        for r in training_records.all_records(spec.name)
        if r.version == state.recorded and state.recorded_run in ("", r.run_id)
    ]
    if not records or not records[-1].digest:
        raise ArtifactError(
            f"{state.deviation}, whose training the ledger does not have",
            "roll back to a version of which the ledger has the training (perennial ledger), or restore the ledger",
            model=spec.name,
        )
    return _as_version(spec, records[-1])


def _taken(spec: ModelSpec, version: str) -> str:
    return f"MLflow has a registered model {spec.name} that Perennial did not train (its version {version})"


def _find_training(version: ModelVersion) -> TrainingRecord | None:
    """The ledger's training of a version; None if it has none."""
    return training_records.find(version.name, version.version, version.run_id)


def _as_version(spec: ModelSpec, record: TrainingRecord) -> ModelVersion:
    return ModelVersion(spec.name, record.version, record.run_id, record.model_id, record.tags)


def changed_within(spec: ModelSpec, span: PartitionRange) -> str:
    """What was done about a deviation that was found when one of some partitions was processed; empty if nothing."""
    records = ledger.records(spec.name, LedgerKind.EXTERNAL_CHANGE)
    resolved = (Decision.FOLLOWED, Decision.RESTORED)
    # A range is dated by its last partition.
    reasons = [
        r["reason"] for r in records if r["decision"] in resolved and r["partition"].split("..")[-1] in span
    ]
    return reasons[-1] if reasons else ""


def check_name(spec: ModelSpec) -> None:
    """Check that the model's name in MLflow is not taken by a model that Perennial did not train.

    Raises:
        ArtifactError: it is taken.
        RegistryError: MLflow cannot be reached.
    """
    if training_records.all_records(spec.name):
        return
    foreign = registry.find_foreign_version(spec.name)
    if foreign is not None:
        raise ArtifactError(
            _taken(spec, foreign),
            "give this model another name (its folder and name in model.yaml), or rename the other one in MLflow",
            model=spec.name,
        )
