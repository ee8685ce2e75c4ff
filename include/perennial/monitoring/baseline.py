"""The monitoring baseline of a champion, computed at training and stored with the model.

The held-out partitions, which the model was not fitted to, show how each monitored series behaves without a change:
`build_baseline` stores its mean, its standard deviation, and a limit for the sequential test that respects the model's
budget of false alarms. The artifacts are ``monitoring_baseline.json`` and, for a regression, its error model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perennial.core.errors import ArtifactError
from perennial.modeling import registry
from perennial.monitoring import drift_attribution, signals
from perennial.monitoring._change_detection import CusumBaseline, fit_cusum_baseline
from perennial.monitoring._loss_estimation import LossEstimator, fit_error_model

if TYPE_CHECKING:
    import xgboost

    from perennial.modeling.trained_model import TrainedModel
    from perennial.monitoring.histograms import ReferenceColumn
    from perennial.monitoring.partition_sample import PartitionSample
    from perennial.spec.model_spec import ModelSpec

FORMAT = 1
ARTIFACT, ERROR_MODEL_ARTIFACT = "monitoring_baseline.json", "error_model.ubj"
#: Kinds of series that share the budget of false alarms: performance, calibration, gain, estimated, attributions,
#: slices, fairness.
SERIES_KINDS = 7
#: Harmless deviations: of the calibration, in standard deviations of the label; of the attributions, as a share.
CALIBRATION_ALLOWANCE, ATTRIBUTION_ALLOWANCE = 0.05, 0.05


@dataclass(frozen=True)
class MonitoringBaseline:
    """The values that later partitions of a champion are compared with.

    Attributes:
        loss_estimator: estimates the expected loss.
        series: baselines of the series, by name.
        attribution_shares: share of each column in the attributions, shape (columns,).
        groups: for each column of slices and fairness, the values that are compared.
        max_null_shares: by column, the highest share of nulls of a held-out partition.
        max_unseen_shares: by categorical column, the highest share of categories unseen at training.
        max_unlabelled_share: highest share of rows without a label of a held-out partition; None if it is not known.
        max_unmatched_share: highest share of labels without a row; None if it is not known.
        loss: mean loss on the held-out partitions, in the unit of the gate's metric.
        expected_loss_by_bin: by column, mean expected loss of each bin (`drift_attribution`).
    """

    loss_estimator: LossEstimator
    series: dict[str, CusumBaseline]
    attribution_shares: np.ndarray
    groups: dict[str, list[str]]
    max_null_shares: dict[str, float]
    max_unseen_shares: dict[str, float]
    max_unlabelled_share: float | None
    max_unmatched_share: float | None
    loss: float
    expected_loss_by_bin: dict[str, list[float]]


def build_baseline(
    spec: ModelSpec,
    model: TrainedModel,
    holdout: PartitionSample,
    reference: Callable[[], Mapping[str, ReferenceColumn]],
) -> tuple[dict[str, Any], xgboost.Booster | None]:
    """Build the monitoring baseline of a new model.

    Args:
        spec: the model's spec.
        model: the new model.
        holdout: rows of the held-out partitions, as `partition_sample.sample_partitions` returns them.
        reference: returns the bins of the columns; called last, because they may still be computed in another thread.

    Returns:
        The content of ``monitoring_baseline.json``, and the error model of a regression.
    """
    labelled = holdout.labelled
    losses = labelled.losses(spec.task, spec.metric)
    error_model, estimator = None, LossEstimator(spec.task, spec.metric)
    if spec.task == "regression" and len(losses):
        error_model, out_of_fold = fit_error_model(labelled.x, losses, labelled.partition_index)
        estimator = LossEstimator(spec.task, spec.metric, error_model)
    attributions = signals.attribution_means(model, holdout)
    totals = attributions.means.sum(axis=0)
    shares = totals / max(float(totals.sum()), 1e-12)
    groups = signals.frequent_groups(labelled)
    series = signals.monitored_series(spec, model, holdout, estimator, attributions, shares, groups)
    if error_model is not None:
        # Out-of-fold estimates, because later partitions are not fitted to either.
        series["performance"] = labelled.partition_means(losses - out_of_fold)
    mean_loss = float(np.nanmean(losses)) if np.isfinite(losses).any() else 0.0
    label_sd = float(np.std(labelled.y)) if len(labelled.y) and spec.task != "multiclass" else 1.0
    baselines = {
        name: _series_baseline(spec, name, values, mean_loss, label_sd, series)
        for name, values in series.items()
    }
    nulls, unseen = signals.null_and_unseen_shares(model, holdout)
    expected = estimator.estimate(holdout.x, holdout.predicted)
    content = {
        "format": FORMAT,
        "partitions": list(holdout.dates),
        "false_alarms_per_year": spec.monitoring.false_alarms_per_year,
        "loss": mean_loss,
        "baselines": {name: fitted.as_dict() for name, fitted in baselines.items() if fitted},
        "series": {name: _rounded(values) for name, values in series.items()},
        "attribution_shares": [round(float(share), 6) for share in shares],
        "groups": groups,
        "max_null_shares": {c: _max_share(values) for c, values in nulls.items()},
        "max_unseen_shares": {c: _max_share(values) for c, values in unseen.items()},
        "max_unlabelled_share": _max_share(signals.unlabelled_shares(holdout)),
        "max_unmatched_share": 0.0
        if holdout.unmatched_labels is None
        else _max_share(holdout.unmatched_labels),
        "expected_loss_by_bin": {}
        if expected is None
        else drift_attribution.expected_loss_by_bin(reference(), model.encoding, holdout.x, expected),
    }
    return content, error_model


def inherit_from_champion(content: dict[str, Any], champion: Mapping[str, Any] | None) -> dict[str, Any]:
    """Complete a new model's baseline from the champion's, if it has too few held-out partitions.

    Both models have similar series. Otherwise, a model that was trained soon after a change could not be monitored.

    Args:
        content: content of the new model's ``monitoring_baseline.json``.
        champion: content of the champion's; None if it has none.
    """
    if champion is None or champion.get("format") != FORMAT:
        return content
    completed: dict[str, Any] = {"baselines": champion["baselines"] | content["baselines"]}
    completed["groups"] = {
        c: names or champion["groups"].get(c, []) for c, names in content["groups"].items()
    }
    for key in ("max_null_shares", "max_unseen_shares"):
        completed[key] = {c: max(share, champion[key].get(c, 0.0)) for c, share in content[key].items()}
    return content | completed


def _series_baseline(
    spec: ModelSpec,
    name: str,
    values: np.ndarray,
    loss: float,
    label_sd: float,
    series: Mapping[str, np.ndarray],
) -> CusumBaseline | None:
    """Fit the baseline of one series, with its allowance and its share of the false alarm budget.

    Args:
        spec: the model's spec.
        name: name of the series.
        values: values on the held-out partitions, shape (partitions,).
        loss: mean loss on the held-out partitions.
        label_sd: standard deviation of the label; 1 for multiclass.
        series: all series by name; series of the same kind share the budget of that kind.
    """
    kind = name.split(":")[0] + ":" if ":" in name else name
    drop = spec.monitoring.performance_drop
    of_kind = sum(other.startswith(kind) for other in series) if ":" in name else 1
    allowance = {
        "performance": drop * loss,
        "gain": spec.retraining.min_gain * loss,
        "estimated": drop * loss,
        "calibration": CALIBRATION_ALLOWANCE * label_sd,
        "attributions": ATTRIBUTION_ALLOWANCE,
        signals.SLICE_PREFIX: 2 * drop * loss,
        signals.FAIRNESS_PREFIX: spec.monitoring.fairness_gap
        * (label_sd if spec.task == "regression" else 1.0),
    }[kind]
    return fit_cusum_baseline(
        values,
        allowance=allowance,
        false_alarms=spec.monitoring.false_alarms_per_year / SERIES_KINDS / of_kind,
        mean=0.0 if name == "gain" else None,
        min_sd=1e-3 * loss if name == "gain" else 0.0,
        two_sided=name == "calibration",
        seed=spec.training.seed,
    )


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 6) for value in values]


def _max_share(values: np.ndarray) -> float:
    """The highest share of any partition; 0 if none has enough rows."""
    finite = values[np.isfinite(values)]
    return round(float(finite.max()), 6) if len(finite) else 0.0


def stored_baseline(champion: registry.ModelVersion) -> dict[str, Any] | None:
    """The baseline that a version was registered with; None if it has none.

    Raises:
        ArtifactError: it is missing in MLflow, or not what was recorded.
    """
    if not registry.has_artifact(champion, ARTIFACT):
        return None
    content: dict[str, Any] = registry.load_json_artifact(champion, ARTIFACT)
    return content


def load_baseline(champion: registry.ModelVersion, spec: ModelSpec) -> MonitoringBaseline:
    """Load a champion's baseline; if it has none, an empty one, with which every series is undetermined.

    Raises:
        ArtifactError: it is missing in MLflow, or not what was recorded.
    """
    content = stored_baseline(champion)
    if content is None:
        return MonitoringBaseline(
            LossEstimator(spec.task, spec.metric), {}, np.zeros(1), {}, {}, {}, None, None, 0.0, {}
        )
    error_model = None
    if spec.task == "regression":
        error_model = registry.download_artifact(champion, ERROR_MODEL_ARTIFACT)
    return parse_baseline(content, spec, error_model)


def parse_baseline(content: Any, spec: ModelSpec, error_model: Path | None) -> MonitoringBaseline:
    """Read the content of ``monitoring_baseline.json``.

    Args:
        content: content of the file.
        spec: the model's spec.
        error_model: file of a regression's error model.

    Raises:
        ArtifactError: it is not a baseline.
    """
    import xgboost

    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        booster = xgboost.Booster({"nthread": 1}, model_file=error_model) if error_model else None
        return MonitoringBaseline(
            LossEstimator(spec.task, spec.metric, booster),
            {str(n): CusumBaseline(**b) for n, b in content["baselines"].items()},
            np.asarray(content["attribution_shares"], np.float64),
            {str(c): [str(v) for v in values] for c, values in content["groups"].items()},
            {str(c): float(v) for c, v in content["max_null_shares"].items()},
            {str(c): float(v) for c, v in content["max_unseen_shares"].items()},
            content.get("max_unlabelled_share"),
            content.get("max_unmatched_share"),
            float(content["loss"]),
            {str(c): [float(v) for v in values] for c, values in content["expected_loss_by_bin"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, xgboost.core.XGBoostError) as error:
        raise ArtifactError(
            f"the monitoring baseline of the champion cannot be used: {error}",
            "train again: training computes the baseline",
        ) from error
