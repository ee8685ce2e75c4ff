"""Reproduction: a registered version is trained again from its recipe, and compared with what was registered.

On the CPU, the same table versions, spec, code, libraries and threads give the same model file, byte for byte. What is
different now is named, and explains a difference; without one, a difference is a fault. CUDA adds in an order that
varies, so that of a version trained on a GPU the held-out metrics are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypedDict

from perennial.core.errors import ArtifactError, DataError, PerennialError
from perennial.features.engine import FeatureQuery
from perennial.governance import erasure
from perennial.lifecycle import champion, ledger_anchors
from perennial.lifecycle.champion import CHAMPION_CHANGES
from perennial.modeling import registry, training_records
from perennial.modeling.registry import ModelVersion
from perennial.modeling.training_records import TrainingRecord
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger, leftovers
from perennial.storage.ledger import Decision, LedgerKind, LedgerRecord
from perennial.training.candidates import Candidate, TrainingJob, fit_best_candidate
from perennial.training.challenger_evaluation import TrainingSource
from perennial.training.checkpoint import Checkpoint
from perennial.training.runs import recipe as recipes
from perennial.training.runs.recipe import Recipe

#: Relative difference of a held-out metric with which a version trained on a GPU still counts as reproduced.
GPU_TOLERANCE = 0.01


class ReproductionResult(TypedDict):
    """What `reproduce` found.

    Attributes:
        version: the version.
        outcome: ``identical``: the files are the same; ``equivalent``: the metrics of a version trained on a GPU are;
            ``different``: neither.
        files: digest of each model file then and now, by name.
        metrics: each held-out metric then and now, by name.
        differences: what this environment has other than that of the training, in words.
    """

    version: str
    outcome: Literal["identical", "equivalent", "different"]
    files: dict[str, tuple[str, str]]
    metrics: dict[str, tuple[float, float]]
    differences: list[str]


def reproduce(spec: ModelSpec, *, version: str = "", actor: str = "") -> ReproductionResult:
    """Train a version again, compare it with the registered one, and record the outcome in the ledger.

    Nothing is registered. The training uses as many threads, processes and as much memory as then.

    Args:
        spec: the model.
        version: number of the version; the champion when not given.
        actor: who asks for it, for the ledger.

    Raises:
        DataError: there is no champion, or the rows of a table version are not those of then; or some were erased.
        ArtifactError: the version's files are missing, are not what was recorded, or it has no recipe.
        StorageError: a table version that it read is no longer stored.
        RegistryError: MLflow cannot be reached, or knows no such version.
    """
    registered = find_version(spec, version)
    recorded = registry.recorded(registered)
    if recipes.ARTIFACT not in recorded.digests:
        raise ArtifactError(
            f"version {registered.version} has no recipe: it was trained before recipes were stored",
            "reproduce a later version",
            model=spec.name,
        )
    recipe = Recipe.from_dict(registry.load_json_artifact(registered, recipes.ARTIFACT))
    trained = registry.load_spec(registered)
    try:
        with recipe.same_limits(), leftovers.temporary_folder("reproduce-") as folder:
            candidate = _train_again(trained, recipe, folder)
            files = _compare_files(candidate, recorded, folder)
            metrics = _compare_metrics(spec, recorded, candidate)
    except PerennialError as error:
        erasure.check_not_erased(spec.name, registered.version, error)
        raise
    result = ReproductionResult(
        version=registered.version,
        outcome=outcome_of(registered, files, metrics),
        files=files,
        metrics=metrics,
        differences=recipe.differences(),
    )
    if candidate.fitted.search_end == "minutes":
        result["differences"].append(
            "training.search.minutes ended the search, which depends on the machine's speed"
        )
    with ledger_anchors.anchored(spec.name):
        ledger.append(
            spec.name,
            kind=LedgerKind.REPRODUCTION,
            decision=Decision.DIFFERENT if result["outcome"] == "different" else Decision.REPRODUCED,
            reason=summarise(result),
            actor=actor or "reproduction",
            partition=registered.as_of,
            model_version=registered.version,
            evidence=dict(result),
        )
    return result


def record_failure(spec: ModelSpec, version: str, cause: str, kind: str, *, actor: str) -> None:
    """Record in the ledger that a version cannot be trained again, so that other models have their turn.

    Args:
        spec: the model.
        version: number of the version.
        cause: why it cannot.
        kind: name of the error.
        actor: who asked for it, for the ledger.
    """
    with ledger_anchors.anchored(spec.name):
        ledger.append(
            spec.name,
            kind=LedgerKind.REPRODUCTION,
            decision=Decision.FAILED,
            reason=f"version {version} cannot be trained again: {cause}",
            actor=actor,
            model_version=version,
            evidence={"error": kind},
        )


def recorded_version(model: str, number: str = "") -> str:
    """The number of a version that the ledger has a training of; empty if it has none.

    Args:
        model: name of the model.
        number: of the version; the champion when not given.
    """
    training = _find_training(model, number)
    return training["model_version"] if training else ""


def _find_training(model: str, number: str = "") -> LedgerRecord | None:
    """The last training of a version, the champion by default."""
    if not number:
        changes = ledger.find(model, *CHAMPION_CHANGES, decisions=tuple(CHAMPION_CHANGES.values()), last=1)
        number = changes[-1]["model_version"] if changes else ""
    trainings = ledger.find(model, LedgerKind.TRAINING, version=number, last=1) if number else []
    return trainings[-1] if trainings else None


def longest_ago(specs: Iterable[ModelSpec]) -> dict[str, str] | None:
    """The champion that was reproduced, or could not be, longest ago, or never: its ``model`` and ``version``.

    Args:
        specs: the models.

    Returns:
        None if no model has a champion with a recipe.
    """
    waiting = []
    for spec in specs:
        training = _find_training(spec.name)
        if training and recipes.ARTIFACT in training["evidence"].get("digests", {}):
            last = ledger.find(spec.name, LedgerKind.REPRODUCTION, last=1)
            waiting.append((last[-1]["recorded_at"] if last else "", spec.name, training["model_version"]))
    return {"model": min(waiting)[1], "version": min(waiting)[2]} if waiting else None


def summarise(result: ReproductionResult) -> str:
    """The outcome in one sentence."""
    number = result["version"]
    if result["outcome"] == "identical":
        return f"version {number}, trained again, is the same model, byte for byte"
    if result["outcome"] == "equivalent":
        return f"version {number}, trained again on a GPU, has the same metrics within {GPU_TOLERANCE:.0%}"
    causes = "; ".join(result["differences"]) or "nothing that is known to change a model is different"
    return f"version {number}, trained again, is another model ({causes})"


def find_version(spec: ModelSpec, number: str) -> ModelVersion:
    """A version, or the champion, as the ledger recorded it.

    Args:
        spec: the model.
        number: of the version; empty for the champion.

    Raises:
        DataError: there is no champion.
        RegistryError: MLflow cannot be reached, or knows no such version.
        ArtifactError: the ledger has no training of the version.
    """
    if number:
        return registry.get_recorded_version(spec.name, number)
    recorded = champion.read_state(spec).recorded
    if recorded is None:
        raise DataError("there is no champion", "name a version", model=spec.name)
    return registry.get_recorded_version(spec.name, recorded)


def _train_again(spec: ModelSpec, recipe: Recipe, folder: Path) -> Candidate:
    """Fit and evaluate what the recipe says, on the table versions of then."""
    compared = None
    if recipe.champion and not recipe.not_compared:
        compared = registry.get_recorded_version(spec.name, recipe.champion)
    source = TrainingSource(spec, FeatureQuery(spec, recipe.tables), recipe.published, recipe.labels)
    windows = recipe.candidate_windows(spec.cadence)
    job = TrainingJob(
        source,
        compared,
        folder,
        {name: Checkpoint(None) for name in windows},
        lambda trial: None,
        workers=recipe.workers,
        not_compared=recipe.not_compared,
    )
    return fit_best_candidate(job, windows)


def _compare_files(
    candidate: Candidate, recorded: TrainingRecord, folder: Path
) -> dict[str, tuple[str, str]]:
    """The digest of each model file then and now."""
    models = {training_records.MODEL_FILE: candidate.registered_model}
    if candidate.registered_model is not candidate.model:
        models[training_records.EVALUATED_MODEL_FILE] = candidate.model
    names = {*models, training_records.EVALUATED_MODEL_FILE} & {*models, *recorded.digests}
    return {
        name: (recorded.digests.get(name, ""), models[name].save(folder / name) if name in models else "")
        for name in sorted(names)
    }


def _compare_metrics(
    spec: ModelSpec, recorded: TrainingRecord, candidate: Candidate
) -> dict[str, tuple[float, float]]:
    """Each held-out metric then and now."""
    trainings = [
        r
        for r in ledger.records(spec.name, LedgerKind.TRAINING)
        if r["model_version"] == recorded.version and r["evidence"].get("run_id") == recorded.run_id
    ]
    then: dict[str, Any] = trainings[-1]["evidence"].get("metrics") or {}
    again = candidate.evaluation.metrics
    return {name: (float(then[name]), float(again[name])) for name in sorted(then.keys() & again.keys())}


def outcome_of(
    version: ModelVersion, files: dict[str, tuple[str, str]], metrics: dict[str, tuple[float, float]]
) -> Literal["identical", "equivalent", "different"]:
    """How a version compares with one that was trained again.

    Args:
        version: the version; its tag ``device`` says where it was trained.
        files: digest of each model file then and now, by name.
        metrics: each held-out metric then and now, by name.
    """
    if all(then == again for then, again in files.values()):
        return "identical"
    alike = all(math.isclose(then, again, rel_tol=GPU_TOLERANCE) for then, again in metrics.values())
    return "equivalent" if version.tags.get("device") == "cuda" and metrics and alike else "different"
