"""What is known about a version when it is registered, collected for its card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from perennial.core import dates
from perennial.core.errors import PerennialError
from perennial.features.engine import FeatureQuery
from perennial.governance.model_card.content import Compared, Dataset, Feature, ModelCard
from perennial.modeling import registry, training_records
from perennial.modeling.registry import ModelVersion
from perennial.spec import spec_changes
from perennial.spec.model_spec import ModelSpec
from perennial.training.candidates import Candidate
from perennial.training.runs.recipe import Recipe
from perennial.training.runs.train_result import row_counts
from perennial.training.runs.training_inputs import TrainingRequest
from perennial.training.studies import staleness, usefulness
from perennial.training.tracking import RegisteredVersion

#: Most features that a card lists, and those of a version whose columns are traced.
MAX_FEATURES, MAX_TRACED = 200, 500
#: What the parts of `ModelSpec.bundle` are, besides the keys of model.yaml.
_FILES = {
    "sql": "features.sql",
    "suite": "expectations.json",
    "readme": "README.md",
    "sets": "feature sets",
    "tables": "feature tables",
}


@dataclass(frozen=True)
class Training:
    """A training that has registered a version.

    Attributes:
        spec: the model.
        request: what was asked for.
        recipe: what it read and ran with.
        candidate: what was trained.
        features: the model's features.
        documents: JSON files of the version, by name.
    """

    spec: ModelSpec
    request: TrainingRequest
    recipe: Recipe
    candidate: Candidate
    features: FeatureQuery
    documents: Mapping[str, Any]


def collect(training: Training, registered: RegisteredVersion) -> ModelCard:
    """The card of a version that was just registered.

    Args:
        training: the training.
        registered: the version.
    """
    spec, candidate, recipe, tags = training.spec, training.candidate, training.recipe, registered.tags
    evaluation, fitted = candidate.evaluation, candidate.fitted
    previous, changes = _previous(spec, registered.version)
    return ModelCard(
        model=spec.name,
        version=registered.version.version,
        created_at=dates.utc_now(),
        task=spec.task,
        owner=spec.owner,
        description=spec.description,
        readme=spec.readme,
        statements=spec.card,
        as_of=training.request.as_of,
        reason=training.request.reason,
        requested_by=training.request.actor,
        target=_target(spec),
        metric=spec.metric,
        algorithm=candidate.model.algorithm,
        objective=spec.objective,
        parameters=_parameters(spec, candidate),
        periods={
            part: tags[f"{part}_range"]
            for part in ("trained", "holdout", "refit")
            if tags.get(f"{part}_range")
        },
        rows=cast("dict[str, int]", row_counts(candidate)),
        coverage=str(evaluation.coverage),
        datasets=_datasets(spec, recipe),
        inputs={**spec.data.columns, **spec.table_columns},
        personal_columns=spec.personal_columns,
        features=_features(training),
        feature_count=len(candidate.model.encoding.columns),
        metrics={name: float(value) for name, value in evaluation.metrics.items()},
        performance=evaluation.performance,
        comparisons=_comparisons(training),
        champion=str(recipe.champion or ""),
        passed=evaluation.passed,
        criteria=candidate.reasons,
        fairness=evaluation.fairness,
        findings=_findings(training),
        monitoring=_monitoring(spec),
        approvers=list(spec.gate.approval.who) if spec.gate.approval else [],
        run_id=registered.version.run_id,
        spec_digest=spec.digest,
        code=tags.get("code_version", ""),
        environment=recipe.environment | {"device": fitted.device, "threads": str(recipe.threads)},
        digests=registered.digests,
        previous=previous,
        changes=changes,
    )


def _target(spec: ModelSpec) -> str:
    delay = f"known {spec.label.arrives_after} after the row" if spec.label.source else "in the rows"
    return f"{spec.label.expression} ({delay})"


def _parameters(spec: ModelSpec, candidate: Candidate) -> dict[str, str]:
    fitted = candidate.fitted
    parameters = {k: v for k, v in fitted.params.items() if k not in ("verbosity", "nthread")}
    searched = {"rounds": fitted.rounds, "search_trials": len(fitted.trials), "seed": spec.training.seed}
    window = {
        "window": candidate.window_name,
        "refit": candidate.refit.sentence if candidate.refit else "none",
    }
    return {name: _text(value) for name, value in (parameters | searched | window).items()}


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _datasets(spec: ModelSpec, recipe: Recipe) -> list[Dataset]:
    inputs = recipe.inputs
    datasets = [Dataset(f"{spec.name}.published", recipe.published, str(inputs.get("rows", "")), "rows")]
    if recipe.labels is not None:
        datasets.append(
            Dataset(f"{spec.name}.labels", recipe.labels, str(inputs.get("labels", "")), "labels")
        )
    references = {reference.name for reference in spec.references}
    for name, number in recipe.tables.items():
        kind = "reference table" if name in references else "feature table"
        datasets.append(Dataset(name, number, "", kind))
    return datasets


def _features(training: Training) -> list[Feature]:
    """The most important features, with the columns that they are computed from."""
    spec, encoding = training.spec, training.candidate.model.encoding
    importance: Mapping[str, float] = training.documents.get("importance.json", {})
    names = sorted(encoding.columns, key=lambda name: (-importance.get(name, 0.0), name))[:MAX_FEATURES]
    traced = None
    if len(encoding.columns) <= MAX_TRACED:
        try:
            traced = training.features.sources()
        except PerennialError:  # the SQL takes too long to plan
            traced = None
    return [
        Feature(
            name,
            "category" if name in encoding.categories else "number",
            float(importance.get(name, 0.0)),
            None if traced is None else traced.get(name, []),
            spec.features.personal.get(name, ""),
        )
        for name in names
    ]


def _comparisons(training: Training) -> list[Compared]:
    evaluation = training.candidate.evaluation
    against = {f"baseline: {name}": compared for name, compared in evaluation.against_baselines.items()}
    if evaluation.against_champion:
        champion = f"champion, version {training.recipe.champion}"
        against = {champion: evaluation.against_champion} | against
    return [Compared(other, c.loss, c.other, c.improvement, c.low, c.high) for other, c in against.items()]


def _findings(training: Training) -> list[str]:
    """What was noticed in the training."""
    candidate = training.candidate
    sentences = [
        f"Feature {name} alone predicts the label almost perfectly ({score})."
        for name, score in candidate.suspected_leaks.items()
    ]
    measured = candidate.evaluation.performance
    for of_value in measured.worse_slices[:5] if measured else ():
        sentences.append(
            f"Worse than the champion where {of_value.name}: improvement {of_value.improvement_text} on "
            f"{of_value.rows:,} rows."
        )
    useful = candidate.studies.get(usefulness.ARTIFACT)
    if useful and useful["sentence"]:
        sentences.append(f"As of {useful['as_of']}, {useful['sentence']}.")
    curve = candidate.studies.get(staleness.ARTIFACT)
    if curve and curve["ages"]:
        oldest = curve["ages"][-1]
        sentences.append(
            f"A model whose window ended {oldest['older_by']} partitions earlier has {oldest['rise']:+.1%} "
            f"{curve['metric']} ({oldest['low']:+.1%} to {oldest['high']:+.1%})."
        )
    return sentences


def _monitoring(spec: ModelSpec) -> dict[str, str]:
    """How the version is monitored, and when it is replaced."""
    policy, retraining, gate = spec.monitoring, spec.retraining, spec.gate
    return {
        "Each partition": f"validated against {len(_expectations(spec))} expectations; bad rows are quarantined",
        "Window": f"{policy.window}, scheduled {spec.schedule.monitor}",
        "Drift": f"of each feature and of the predictions, drifted from a share of {policy.drift_share:.0%} of the "
        "importance",
        "Slices": ", ".join(policy.slices) or "none",
        "Groups": ", ".join(policy.fairness) or "none",
        "Retraining": f"{retraining.mode}, on {', '.join(retraining.triggers)}, at most {retraining.budget} in "
        f"{retraining.budget_period}",
        "Promotion": f"clearly better than the champion on {spec.training.holdout} held out, by a bootstrap at "
        f"{gate.confidence:.0%}",
        "Trial": f"{retraining.trial}" if retraining.trial else "none",
    }


def _expectations(spec: ModelSpec) -> Sequence[Any]:
    try:
        expectations = json.loads(spec.suite).get("expectations", [])
    except (ValueError, AttributeError):
        return []
    return expectations if isinstance(expectations, list) else []


def _previous(spec: ModelSpec, version: ModelVersion) -> tuple[str, list[str]]:
    """The version that was registered before, and the keys of the spec that differ from its spec."""
    records = [r for r in training_records.all_records(spec.name) if r.version != version.version]
    if not records:
        return "", []
    record = records[-1]
    before = ModelVersion(spec.name, record.version, record.run_id, record.model_id, record.tags)
    try:
        trained = registry.load_spec(before)
    except (PerennialError, ValueError, KeyError, TypeError):  # of another format, or gone
        return record.version, ["(its spec cannot be read any more)"]
    changed = spec_changes.changed_keys(trained.bundle(), spec.bundle())
    return record.version, sorted(_FILES.get(key, key) for key in changed)
