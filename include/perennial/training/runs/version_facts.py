"""What the registered version and its report say about the training."""

from __future__ import annotations

from perennial.core import runtime
from perennial.modeling.metrics import EVAL_METRICS
from perennial.spec.model_spec import ModelSpec
from perennial.training.candidates import Candidate
from perennial.training.challenger_evaluation import TrainingSource
from perennial.training.checkpoint import LearningCurve
from perennial.training.runs.training_inputs import TrainingRequest


def version_tags(source: TrainingSource, candidate: Candidate, request: TrainingRequest) -> dict[str, str]:
    """The tags of the registered version, without its digest."""
    tags = {
        "as_of": request.as_of,
        "task": source.spec.task,
        "spec_digest": source.spec.digest,
        "code_version": runtime.code_version(),
        "dataset_version": f"published@{source.version} labels@{source.labels_version}",
        "device": candidate.fitted.device,
        "algorithm": candidate.model.algorithm,
        "trained_range": str(candidate.windows.trained_range),
        "holdout_range": str(candidate.windows.holdout_range),
        "reason": request.reason,
    }
    if candidate.refit and candidate.refit.model:
        tags["refit_range"] = str(candidate.refit.windows.trained_range)
    return tags


def version_description(spec: ModelSpec, request: TrainingRequest, candidate: Candidate) -> str:
    """The description of the version on its page in MLflow, Markdown."""
    verdict = "Passed the gate" if candidate.evaluation.passed else "Rejected by the gate"
    lines = [f"{verdict}. Trained as of {request.as_of}: {request.reason or 'requested by hand'}", ""]
    lines += [f"- {reason}" for reason in candidate.reasons]
    if spec.features.personal:
        lines += ["", "Features that depend on personal data, and why the model needs them:", ""]
        lines += [f"- `{feature}`: {reason}" for feature, reason in spec.features.personal.items()]
    return "\n".join(lines)


def learning_curve(spec: ModelSpec, candidate: Candidate) -> LearningCurve | None:
    """The learning curve of the search trial with the model's parameters; None for a linear model."""
    best = candidate.fitted.best_trial
    return (EVAL_METRICS[spec.task, spec.metric], best.curve) if best else None


def report_facts(source: TrainingSource, candidate: Candidate, request: TrainingRequest) -> dict[str, str]:
    """What the report lists about the training."""
    tags, fitted = version_tags(source, candidate, request), candidate.fitted
    searched = {
        name: f"{value:g}" for name, value in (fitted.best_trial.params if fitted.best_trial else {}).items()
    }
    sampled = candidate.share < 1
    sample = f" (a sample, {candidate.share:.3%} of the rows, by training.max_rows)" if sampled else ""
    return {
        "Requested because": request.reason,
        "Requested by": request.actor,
        "Algorithm": f"{tags['algorithm']}, {fitted.rounds} rounds, {len(fitted.trials)} search trials"
        + (f" (the search ended by training.search.{fitted.search_end})" if fitted.search_end else ""),
        "Parameters of the search": ", ".join(f"{name} {value}" for name, value in searched.items()),
        "Window": f"{candidate.window_name}: {tags['trained_range']}, held out {tags['holdout_range']}",
        "Refit": candidate.refit.sentence if candidate.refit else "none",
        "Rows": f"{candidate.rows:,} to fit and for early stopping{sample}, {candidate.evaluation.rows:,} held out",
        "Table versions": tags["dataset_version"],
        "Device": tags["device"],
        "Spec": tags["spec_digest"],
        "Code": tags["code_version"],
        "Airflow run": request.run_id,
    }
