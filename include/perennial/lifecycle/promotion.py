"""Promotion and rollback, which alone set the alias ``champion``, and record that in the ledger; versions in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from perennial.core.errors import ArtifactError, DataError, RegistryRequestError, StorageFaultError
from perennial.core.partitions import PartitionRange
from perennial.lifecycle import champion, promotion_approval, trials
from perennial.lifecycle.champion import ChampionChange, ChampionState
from perennial.modeling import registry, training_records
from perennial.modeling.registry import ModelVersion
from perennial.modeling.training_records import TrainingRecord
from perennial.spec import spec_changes
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger, locks, manifests
from perennial.storage.ledger import Decision, LedgerKind, Policy


class PromotionResult(TypedDict):
    """The outcome of a promotion.

    Attributes:
        promoted: whether the challenger is champion now.
        version: version of the challenger.
        previous: the previous champion; if the challenger was not promoted, the current one.
        reason: why.
    """

    promoted: bool
    version: str
    previous: str | None
    reason: str


class RollbackResult(TypedDict):
    """The version that is champion again, and the one it replaced."""

    version: str
    previous: str | None


def promote_challenger(
    spec: ModelSpec, *, as_of: str, actor: str, reason: str = "", policy: Policy = Policy.GATE
) -> PromotionResult:
    """Make the challenger trained as of a date champion, or start its trial.

    It is promoted if it passed its gate, and the champion is still the one that the gate compared it with.

    Args:
        spec: the model.
        as_of: the partition date as of which it was trained.
        actor: who started the run, for the ledger; it is the policy that decides.
        reason: why it was requested, for the ledger.
        policy: what decided: the gate, or the trial that followed it.

    Raises:
        DataError: no training of that date has finished.
    """
    training = _read_training(spec, as_of)
    gate, version = training["gate"], str(training["version"])
    gate_reasons = "; ".join(gate["reasons"])
    with locks.hold(f"promote-{spec.name}"):
        state = champion.resolve(spec, champion.read_state(spec), partition=as_of, actor="promotion")
        current = _champion_to_replace(state, version)
        if version == state.champion == state.recorded and not state.deviation and gate["passed"]:
            registry.remove_alias(spec.name, version, "challenger")
            return _result(True, version, gate["champion"], "it is already champion")
        refusal = _refusal(state, training) or _outdated(spec, version)
        if refusal is not None:
            registry.remove_alias(spec.name, version, "challenger")
            return _result(False, version, state.champion, refusal)
        if moved := _moved_champion(state, current, gate["champion"]):
            if not state.deviation:
                registry.remove_alias(spec.name, version, "challenger")
            return _result(False, version, current, moved)
        # A version that cannot be compared with the champion cannot be compared in a trial either.
        if not gate["not_compared"] and _needs_trial(spec, version, current):
            if trials.latest_decision(spec, version) == Decision.FAILED:
                refusal = f"version {version} was not clearly better on its trial: train again with force"
                return _result(False, version, current, refusal)
            trials.start_trial(spec, version=version, champion=str(current), as_of=as_of, triggered_by=actor)
            policy_words = trials.describe_policy(spec)
            return _result(
                False, version, current, f"version {version} passed the gate, and {policy_words} first"
            )
        if missing := promotion_approval.missing(spec, training):
            return _result(False, version, current, missing)
        evidence = {key: training[key] for key in ("metrics", "run_id", "digest")}
        evidence["report"] = training.get("report", "")  # trainings of earlier versions wrote none
        evidence |= {"previous": current, "request_reason": reason, "triggered_by": actor}
        evidence |= promotion_approval.approver(spec, training)
        _change_champion(
            spec,
            ChampionChange(
                version, state.last_change, LedgerKind.PROMOTION, gate_reasons, policy, evidence, as_of
            ),
        )
    return _result(True, version, current, gate_reasons)


def _moved_champion(state: ChampionState, current: str | None, compared: str | None) -> str:
    """Why a challenger cannot replace the champion, which is not the one that it was compared with; empty if it can."""
    if current == compared:
        return ""
    if state.deviation:
        return f"{state.deviation}, and the challenger was compared with {compared}: roll back first"
    return f"the champion is now {current}, the challenger was compared with {compared}: train again"


def open_question(spec: ModelSpec, *, as_of: str) -> promotion_approval.Question | None:
    """What a person must be asked before the version trained as of a date becomes champion; None if nothing.

    Args:
        spec: the model.
        as_of: the partition date as of which it was trained.

    Raises:
        DataError: no training of that date has finished.
    """
    training = _read_training(spec, as_of)
    version, state = str(training["version"]), champion.read_state(spec)
    current = _champion_to_replace(state, version)
    if (
        spec.gate.approval is None
        or promotion_approval.answer(spec, training)
        or version == state.recorded
        or current != training["gate"]["champion"]
        or (_refusal(state, training) or _outdated(spec, version))
        or (not training["gate"]["not_compared"] and _needs_trial(spec, version, current))
    ):
        return None
    return promotion_approval.question(spec, training)


def _champion_to_replace(state: ChampionState, version: str) -> str | None:
    """The champion that a challenger must have been compared with.

    The alias may already point to the challenger, set by hand. Where the alias is gone, or its version was replaced,
    the ledger's champion is the one to replace.
    """
    lost = bool(state.deviation) and state.champion in (None, state.recorded)
    return state.recorded if lost or state.champion == version else state.champion


def _read_training(spec: ModelSpec, as_of: str) -> dict[str, Any]:
    """The result of the train step for a date."""
    spec.cadence.parse(as_of, "as_of")
    manifest = manifests.read(spec.name, "train", as_of)
    if manifest is None:
        raise DataError(
            "there is no finished training",
            "run the train DAG for this date first",
            model=spec.name,
            partition=as_of,
        )
    _compare_with_ledger(spec, as_of, manifest.result)
    return manifest.result


def _compare_with_ledger(spec: ModelSpec, as_of: str, training: Mapping[str, Any]) -> None:
    """Check that a training's manifest says what the ledger recorded: a manifest is a file that can be edited.

    Raises:
        StorageFaultError: they differ.
    """
    version, gate = str(training["version"]), training["gate"]
    decision = Decision.ACCEPTED if gate["passed"] else Decision.REJECTED
    expected = (version, decision, training["run_id"], training["digest"], gate["champion"])
    for record in reversed(ledger.records(spec.name, LedgerKind.TRAINING)):
        evidence = record["evidence"]
        digest = evidence.get("digests", {}).get(training_records.MODEL_FILE)
        run_id, compared = evidence.get("run_id"), evidence.get("champion")
        if (record["model_version"], record["decision"], run_id, digest, compared) == expected:
            return
    raise StorageFaultError(
        f"the manifest of the training of version {version} differs from the ledger's record",
        "it was changed, or the ledger was restored from an older backup: train this date again with force",
        model=spec.name,
        partition=as_of,
    )


def _result(promoted: bool, version: str, previous: str | None, reason: str) -> PromotionResult:
    return {"promoted": promoted, "version": version, "previous": previous, "reason": reason}


def _refusal(state: ChampionState, training: Mapping[str, Any]) -> str | None:
    """Why a challenger cannot be promoted, whichever version is champion; None if it can."""
    version, gate = str(training["version"]), training["gate"]
    if not gate["passed"]:
        return "; ".join(gate["reasons"])
    if any(
        r["model_version"] == version
        and r["decision"] == Decision.PROMOTED
        and r["evidence"].get("run_id") == training["run_id"]
        for r in state.changes
    ):
        return f"version {version} was champion before and was replaced: train again with force, or roll back to it"
    return None


def _outdated(spec: ModelSpec, version: str) -> str | None:
    """Why a version does not predict what the spec describes; None if it does."""
    trained = registry.load_spec(registry.get_version(spec.name, version))
    if difference := spec_changes.target_difference(trained, spec):
        return f"version {version} does not fit the spec any more: {difference}; train again"
    return None


def _needs_trial(spec: ModelSpec, version: str, current: str | None) -> bool:
    """Whether a version must pass a trial first; not if there is no champion to compare with."""
    if current is None or not spec.retraining.trial:
        return False
    return trials.latest_decision(spec, version) != Decision.PASSED


def _change_champion(spec: ModelSpec, change: ChampionChange) -> None:
    """Point ``champion`` to a version, and record that."""
    champion.write_intent(spec, change)
    registry.set_alias(spec.name, change.version, "champion")
    champion.record_change(spec, change)


def roll_back_champion(
    spec: ModelSpec, *, actor: str, reason: str, to_version: str | None = None, airflow_run: str = ""
) -> RollbackResult:
    """Make an earlier version champion again, after checking that it can predict.

    Args:
        spec: the model.
        actor: who rolls back, for the ledger.
        reason: why, for the ledger; must not be empty.
        to_version: the version; the previous champion by default.
        airflow_run: id of the run in Airflow, for the ledger.

    Raises:
        DataError: no reason is given.
        RegistryRequestError: there is no such version, or no version to roll back to.
        RegistryError: MLflow cannot be reached.
        ArtifactError: the version's file is damaged, or it cannot predict; the champion is not changed.
    """
    if not reason.strip():
        raise DataError(
            "a rollback needs a reason", "give one; it is recorded in the ledger", model=spec.name
        )
    with locks.hold(f"promote-{spec.name}"):
        state = champion.finish_interrupted(spec, champion.read_state(spec))
        if state.deviation:
            champion.report(spec, state, partition=None, actor=actor)
        if finished := _interrupted_rollback(state, actor, reason, to_version):
            return finished
        current = state.champion
        target = to_version or rollback_target(state)
        # A version that the alias points to can be adopted, if that was not recorded.
        if not target or (target == current and not state.deviation):
            raise _no_target_error(spec, target, current)
        version, repeated = check_target(spec, target)
        evidence: dict[str, Any] = {"previous": current, "digest": version.digest, "run_id": version.run_id}
        evidence["repeated_rows"] = repeated
        if airflow_run:
            evidence["airflow_run"] = airflow_run
        change = ChampionChange(target, state.last_change, LedgerKind.ROLLBACK, reason, actor, evidence)
        _change_champion(spec, change)
    return {"version": target, "previous": current}


def rollback_target(state: ChampionState) -> str:
    """The version that a rollback goes to unless another one is named; empty if there is none."""
    current, recorded = state.champion, state.recorded
    return (champion.predecessor(state.changes, current) if current == recorded else recorded) or ""


def check_target(spec: ModelSpec, target: str) -> tuple[registry.ModelVersion, int]:
    """Check that a version can become champion again, without making it that.

    Returns:
        The version, and the number of rows that it predicted again as it did.

    Raises:
        RegistryRequestError: there is no such version, or it does not predict what the spec describes.
        ArtifactError: its file is damaged, or it cannot predict.
    """
    version = registry.get_recorded_version(spec.name, target)
    repeated = check_servable(spec, version)
    if outdated := _outdated(spec, target):
        raise RegistryRequestError(
            outdated, "choose another version, or undo the change of the spec first", model=spec.name
        )
    return version, repeated


def _interrupted_rollback(
    state: ChampionState, actor: str, reason: str, to_version: str | None
) -> RollbackResult | None:
    """The result of this rollback if it was killed before and has been recorded since; None otherwise.

    Tried again, it must not go back one version further.
    """
    last = state.changes[-1] if state.changes else None
    if last is None or not last["evidence"].get("interrupted") or last["kind"] != LedgerKind.ROLLBACK:
        return None
    if state.deviation or (last["actor"], last["reason"]) != (actor, reason):
        return None
    if to_version not in (None, last["model_version"]):
        return None
    return {"version": str(last["model_version"]), "previous": last["evidence"]["previous"]}


def _no_target_error(spec: ModelSpec, target: str, current: str | None) -> RegistryRequestError:
    """The error for a rollback to nothing, or to the champion itself."""
    if target:
        return RegistryRequestError(
            f"version {target} is the champion already",
            f"name another version with to_version: perennial ledger {spec.name} lists the earlier champions",
            model=spec.name,
        )
    if current is None:
        return RegistryRequestError(
            "there is no champion, and no version was champion before",
            "run the train step: a version that passes the gate becomes champion",
            model=spec.name,
        )
    return RegistryRequestError(
        f"no version was champion before version {current}",
        "name a version with to_version; the model's page in MLflow lists them",
        model=spec.name,
    )


def check_servable(spec: ModelSpec, version: registry.ModelVersion) -> int:
    """Check that a version can serve: load it, check its digest, and predict a row of missing values.

    It also has to predict the same as then for rows that it scored, of which the serving log has a sample.

    Returns:
        The number of these rows.

    Raises:
        ArtifactError: its file is not what was registered, its prediction is not finite, or it predicts other values.
    """
    # not at the top: light tasks import this module and never call this function
    import numpy as np

    from perennial.monitoring import train_serve_skew

    # fresh, because a copy in this machine's cache must not hide a damaged file.
    model = registry.load_model(version, fresh=True)
    registry.load_spec(version)
    row = np.full((1, len(model.encoding.columns)), np.nan, dtype=np.float32)
    if not np.isfinite(model.predict_matrix(row)).all():
        raise ArtifactError(
            f"version {version.version} does not return a finite prediction",
            "roll back to another version, or train again",
            model=version.name,
        )
    return train_serve_skew.check_predictions(spec, version, model)


class VersionInUse(NamedTuple):
    """A version of which nothing that it needs is deleted.

    Attributes:
        record: what the ledger recorded of its training: tags in MLflow can be edited.
        version: the version; None if MLflow does not have it any more.
    """

    record: TrainingRecord
    version: ModelVersion | None

    @property
    def ranges(self) -> list[PartitionRange]:
        """The partitions that it was fitted and evaluated on."""
        return self.record.ranges


def in_use(spec: ModelSpec) -> dict[str, VersionInUse]:
    """The versions in use, by number.

    They are champion, its predecessor, a challenger on trial, one that waits for its approval, and each with an alias.

    Raises:
        RegistryError: MLflow cannot be reached, or lost the champion.
        ArtifactError: the ledger has no training of one that MLflow has.
    """
    state, trial = champion.read_state(spec), trials.active_trial(spec)
    trained = training_records.all_records(spec.name)
    numbers = {state.champion, state.recorded, champion.predecessor(state.changes, state.recorded)}
    numbers |= {str(trial["model_version"])} if trial else set()
    numbers |= registry.aliased(spec.name) | _unanswered(spec, state, trained)
    records = {record.version: record for record in trained}
    used = {}
    for number in sorted(filter(None, numbers), key=int):
        version = registry.find_version(spec.name, number)
        if version is not None:
            used[number] = VersionInUse(registry.recorded(version), version)
        elif number == state.recorded:
            raise RegistryRequestError(
                f"MLflow does not have version {number}, the champion of the ledger: what is in use is not known",
                "restore MLflow from a backup, or roll back to a version that it has",
                model=spec.name,
            )
        elif number in records:
            used[number] = VersionInUse(records[number], None)
    return used


def _unanswered(spec: ModelSpec, state: ChampionState, trained: Sequence[TrainingRecord]) -> set[str]:
    """The versions that become champion if somebody approves that."""
    since = state.changes[-1]["recorded_at"] if state.changes else ""
    days = {record.tags.get("as_of", "") for record in trained if record.recorded_at >= since}
    versions = set()
    for day in sorted(days - {""}) if spec.gate.approval else ():
        try:
            asked = open_question(spec, as_of=day)
        except DataError:  # the training has not finished
            continue
        versions |= {asked.version} if asked else set()
    return versions
