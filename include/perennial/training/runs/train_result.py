"""What the train step returns."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from perennial.modeling import registry
from perennial.modeling.coverage import CoverageResult
from perennial.modeling.registry import ModelVersion
from perennial.storage import pages
from perennial.training.candidates import Candidate
from perennial.training.challenger_evaluation import Evaluation
from perennial.training.runs.training_inputs import PinnedData, TrainingRequest
from perennial.training.search import GpuReport
from perennial.training.studies import staleness, usefulness
from perennial.training.studies.staleness import Staleness
from perennial.training.studies.usefulness import Usefulness

#: Most slices that are named.
MAX_WORSE_SLICES = 5
#: Most features whose importance is compared with the champion's.
MAX_CHANGED_FEATURES = 5


class DatasetVersions(TypedDict):
    """Versions of the tables that a training read.

    Attributes:
        published: version of the published rows.
        labels: version of the labels; None if the rows contain them.
        references: version of each reference table, by name.
    """

    published: int
    labels: int | None
    references: dict[str, int]


class RowCounts(TypedDict):
    """Numbers of rows by what they were used for."""

    fit: int
    valid: int
    holdout: int


class ImportanceChange(TypedDict):
    """A feature's importance in the challenger and in the champion, as shares."""

    feature: str
    share: float
    champion: float


class GateResult(TypedDict):
    """The result of the gate.

    Attributes:
        passed: whether the challenger passed.
        reasons: a sentence for each criterion.
        against_champion: `Comparison.as_dict` with the champion; None if there was none.
        against_baselines: `Comparison.as_dict` with each baseline model, by name.
        champion: version of the champion; None if there was none.
        coverage: how many of the published rows of the held-out dates the gate rests on.
        not_compared: why the challenger was not compared with the champion: it was trained for another task, key or
            label. Empty if it was, or there was none.
    """

    passed: bool
    reasons: list[str]
    against_champion: dict[str, Any] | None
    against_baselines: dict[str, dict[str, Any]]
    champion: str | None
    coverage: CoverageResult
    not_compared: str


class TrainResult(TypedDict):
    """The result of a training.

    Attributes:
        as_of: partition date of the training; later data was not used.
        run_id: MLflow run.
        version: registered version.
        digest: SHA-256 of the model file.
        dataset_version: versions of the tables that were read.
        device: device that trained: ``cpu`` or ``cuda``.
        gpu: use of the GPUs; None without a GPU.
        workers: number of processes that fitted the model together.
        algorithm: ``trees`` or ``linear``.
        rounds: boosting rounds of the model; 1 for a linear one.
        external_memory: whether the binned matrix was on disk.
        trials: number of search trials.
        search_end: what ended the search before its last trial: ``budget``, ``minutes``, or nothing.
        resumed_rounds: rounds from the checkpoint of an interrupted training.
        metrics: metrics on the held-out rows, by name.
        intervals: the metrics with the ends of their intervals, by name: value, low, high; of the challenger
            (``metrics``), and of the champion on the same rows (``champion``).
        importance_changes: the features whose importance differs most from the champion's, the largest difference
            first.
        worse_slices: sentences about the slices in which the challenger is clearly worse than the champion, the worst
            first.
        reason: why the training was requested.
        window: name of the best window.
        since: date of the change that the retraining responds to; empty if there was none.
        report: URI of the report.
        status: ``trained``, or ``unchanged`` if the same inputs were trained before.
        gate: result of the gate.
        refit: sentence about the fit on the held-out rows as well; nothing if there was none.
        candidates: loss of each candidate on the held-out rows by what they differ in (``window``, ``algorithm``) and
            name; none where there was only one.
        rows: numbers of rows.
        usefulness: what the features are worth, as far as it was measured in this training or an earlier one.
        staleness: what a model loses by being older, likewise.
    """

    as_of: str
    run_id: str
    version: str
    digest: str
    dataset_version: DatasetVersions
    device: str
    gpu: GpuReport | None
    workers: int
    algorithm: str
    rounds: int
    external_memory: bool
    trials: int
    search_end: NotRequired[str]
    resumed_rounds: int
    metrics: dict[str, float]
    intervals: NotRequired[dict[str, dict[str, list[float]]]]
    importance_changes: NotRequired[list[ImportanceChange]]
    worse_slices: NotRequired[list[str]]
    reason: str
    window: str
    since: str
    report: str
    status: Literal["trained", "unchanged"]
    refit: NotRequired[str]
    gate: GateResult
    candidates: dict[str, dict[str, float]]
    rows: RowCounts
    usefulness: NotRequired[Usefulness]
    staleness: NotRequired[Staleness]


def train_result(
    request: TrainingRequest,
    pinned: PinnedData,
    candidate: Candidate,
    version: ModelVersion,
    digest: str,
    report: str,
) -> TrainResult:
    """The result of a training that registered a version.

    Args:
        request: what was asked for.
        pinned: what was read.
        candidate: what was trained.
        version: the registered version.
        digest: SHA-256 of the model file.
        report: URI of the report.
    """
    fitted, evaluation = candidate.fitted, candidate.evaluation
    result: TrainResult = {
        "as_of": request.as_of,
        "run_id": version.run_id,
        "version": version.version,
        "digest": digest,
        "dataset_version": {
            "published": pinned.version,
            "labels": pinned.labels_version,
            "references": pinned.reference_versions,
        },
        "device": fitted.device,
        "gpu": fitted.gpu,
        "workers": request.workers,
        "algorithm": candidate.model.algorithm,
        "rounds": fitted.rounds,
        "external_memory": fitted.external_memory,
        "trials": len(fitted.trials),
        "search_end": fitted.search_end,
        "resumed_rounds": fitted.resumed_rounds,
        "metrics": evaluation.metrics,
        "intervals": _intervals(evaluation),
        "importance_changes": _importance_changes(pinned, candidate),
        "worse_slices": _worse_slices(evaluation),
        "reason": request.reason,
        "window": candidate.window_name,
        "since": pinned.since,
        "report": report,
        "status": "trained",
        "gate": _gate_result(pinned, candidate),
        "refit": candidate.refit.sentence if candidate.refit else "",
        "candidates": {"window": candidate.window_losses, "algorithm": candidate.algorithm_losses},
        "rows": row_counts(candidate),
    }
    if useful := candidate.studies.get(usefulness.ARTIFACT):
        result["usefulness"] = useful
    if curve := candidate.studies.get(staleness.ARTIFACT):
        result["staleness"] = curve
    return result


def _worse_slices(evaluation: Evaluation) -> list[str]:
    slices = evaluation.performance.worse_slices if evaluation.performance else []
    return [
        f"{s.name}: improvement {s.improvement_text} on {s.rows:,} rows" for s in slices[:MAX_WORSE_SLICES]
    ]


def row_counts(candidate: Candidate) -> RowCounts:
    """Numbers of rows by what they were used for."""
    valid = candidate.rows - candidate.fit_rows
    return {"fit": candidate.fit_rows, "valid": valid, "holdout": candidate.evaluation.rows}


def _intervals(evaluation: Evaluation) -> dict[str, dict[str, list[float]]]:
    """The metrics of challenger and champion, with the ends of their intervals."""
    content = evaluation.performance.as_dict() if evaluation.performance else {}
    return {model: content[model] for model in ("metrics", "champion") if content.get(model)}


def _importance_changes(pinned: PinnedData, candidate: Candidate) -> list[ImportanceChange]:
    """The features whose importance differs most from the champion's, the largest difference first.

    Both are those of the models that were evaluated, and not of those that were fitted once more.
    """
    champion = pinned.champion
    if champion is None:
        return []
    # It decides nothing: a champion that cannot be read is named by the gate.
    before, _ = pages.attempt(
        f"the importance of features in version {champion.version}",
        lambda: dict[str, float](registry.load_json_artifact(champion, "importance.json")),
    )
    if before is None:
        return []
    after = candidate.model.importance()
    changes: list[ImportanceChange] = [
        {"feature": name, "share": after.get(name, 0.0), "champion": before.get(name, 0.0)}
        for name in {**after, **before}
    ]
    changes.sort(key=lambda c: (-abs(c["share"] - c["champion"]), c["feature"]))
    return [c for c in changes[:MAX_CHANGED_FEATURES] if c["share"] != c["champion"]]


def _gate_result(pinned: PinnedData, candidate: Candidate) -> GateResult:
    evaluation = candidate.evaluation
    comparisons = evaluation.as_dict()
    return {
        "passed": evaluation.passed,
        "reasons": candidate.reasons,
        "against_champion": comparisons["against_champion"],
        "against_baselines": comparisons["against_baselines"],
        "champion": pinned.champion_version,
        "coverage": evaluation.coverage.as_dict(),
        "not_compared": evaluation.not_compared,
    }
