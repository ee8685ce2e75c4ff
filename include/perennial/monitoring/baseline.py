"""What monitoring compares with, made when a model is trained: `watch.json`, and a regression's learned error model.

The held-out nights, which the model has not learned from, are the quiet ones: of each followed number they give the
mean, the spread, and a limit that keeps to the model's budget of false alarms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.core.errors import ArtifactError
from perennial.modeling import registry
from perennial.monitoring import drift_attribution, signals
from perennial.monitoring._change_detection import CusumBaseline, fit_cusum_baseline
from perennial.monitoring._loss_estimation import LossEstimator, fit_error_model

if TYPE_CHECKING:
    import numpy as np
    import xgboost

    from perennial.modeling.trained_model import TrainedModel
    from perennial.monitoring.histograms import ReferenceColumn
    from perennial.monitoring.nightly_sample import NightlySample
    from perennial.spec.model_spec import ModelSpec

FORMAT = 1
ARTIFACT, ERROR_MODEL_ARTIFACT = "watch.json", "errors.ubj"
#: Numbers that share the budget of false alarms: performance, calibration, gain, estimated, attributions, slices,
#: fairness.
SERIES_KINDS = 7
#: Deviations that do no harm: of the calibration, in standard deviations of the label; of the attributions, as a share.
CALIBRATION_ALLOWANCE, ATTRIBUTION_ALLOWANCE = 0.05, 0.05


@dataclass(frozen=True)
class MonitoringBaseline:
    """What a champion's nights are compared with.

    Attributes:
        baselines: by the name of the number. shares: of each column in the attributions, shape (columns,).
        groups: values of slices and groups. nulls, unseen: highest share of a quiet night, by column.
        loss: mean loss on the quiet nights. bins: mean expected loss of each bin of each column.
    """

    expected: LossEstimator
    baselines: dict[str, CusumBaseline]
    shares: np.ndarray
    groups: dict[str, list[str]]
    nulls: dict[str, float]
    unseen: dict[str, float]
    loss: float
    bins: dict[str, list[float]]


def build_baseline(
    spec: ModelSpec,
    model: TrainedModel,
    quiet: NightlySample,
    reference: Callable[[], Mapping[str, ReferenceColumn]],
) -> tuple[dict[str, Any], xgboost.Booster | None]:
    """The watch of a new model, as JSON, and the error model of a regression.

    Args:
        quiet: rows of the held-out nights, as `nightly_sample.sample_nights` gives them.
        reference: gives the columns' bins; called last, for they may still be counted meanwhile.
    """
    import numpy as np

    known = quiet.labelled
    loss = known.losses(spec.task, spec.metric)
    errors, expected = None, LossEstimator(spec.task, spec.metric)
    if spec.task == "regression" and len(loss):
        errors, apart = fit_error_model(known.x, loss, known.night)
        expected = LossEstimator(spec.task, spec.metric, errors)
    attributed = signals.attributions(model, quiet)
    total = attributed[0].sum(axis=0)
    shares = total / max(float(total.sum()), 1e-12)
    groups = signals.frequent_groups(known)
    series = signals.nightly_series(spec, model, quiet, expected, attributed, shares, groups)
    if errors is not None:  # judged by what it says of nights that it has not seen
        series["performance"] = known.mean(loss - apart)
    usual = float(loss.mean()) if len(loss) else 0.0
    baselines = {
        name: _series_baseline(spec, name, values, usual, known.y, series) for name, values in series.items()
    }
    empty, odd = signals.null_and_unseen_shares(model, quiet)
    guess = expected.losses(quiet.x, quiet.predicted)
    content = {
        "format": FORMAT,
        "nights": list(quiet.dates),
        "false_alarms_per_year": spec.monitoring.false_alarms_per_year,
        "loss": usual,
        "baselines": {name: found.as_dict() for name, found in baselines.items() if found},
        "series": {n: [None if np.isnan(v) else round(float(v), 6) for v in s] for n, s in series.items()},
        "shares": [round(float(v), 6) for v in shares],
        "groups": groups,
        "nulls": {c: _max_share(nights) for c, nights in empty.items()},
        "unseen": {c: _max_share(nights) for c, nights in odd.items()},
        "bins": {}
        if guess is None
        else drift_attribution.expected_loss_by_bin(reference(), model.encoding, quiet.x, guess),
    }
    return content, errors


def inherit_from_champion(content: dict[str, Any], old: Mapping[str, Any] | None) -> dict[str, Any]:
    """A new model's watch, with what it was judged on too few nights to have from the champion's, if that has one.

    What is quiet for the one is about as quiet for the other; a model made in a hurry, after a change, must not go
    unwatched.
    """
    if old is None or old.get("format") != FORMAT:
        return content
    found = {"baselines": old["baselines"] | content["baselines"]}
    found["groups"] = {c: names or old["groups"].get(c, []) for c, names in content["groups"].items()}
    for what in ("nulls", "unseen"):
        found[what] = {c: max(share, old[what].get(c, 0.0)) for c, share in content[what].items()}
    return content | found


def _series_baseline(
    spec: ModelSpec, name: str, values: np.ndarray, loss: float, y: np.ndarray, series: dict[str, np.ndarray]
) -> CusumBaseline | None:
    import numpy as np

    kind = name.split(":")[0] + ":" if ":" in name else name
    drop = spec.monitoring.performance_drop
    budget = spec.monitoring.false_alarms_per_year / SERIES_KINDS
    alike = sum(other.startswith(kind) for other in series) if ":" in name else 1
    spread = float(np.std(y)) if len(y) and spec.task != "multiclass" else 1.0
    allowance = {
        "performance": drop * loss,
        "gain": spec.retraining.min_gain * loss,
        "estimated": drop * loss,
        "calibration": CALIBRATION_ALLOWANCE * spread,
        "attributions": ATTRIBUTION_ALLOWANCE,
        signals.SLICE_PREFIX: 2 * drop * loss,
        signals.FAIRNESS_PREFIX: spec.monitoring.fairness_gap
        * (spread if spec.task == "regression" else 1.0),
    }[kind]
    return fit_cusum_baseline(
        values,
        allowance=allowance,
        false_alarms=budget / alike,
        mean=0.0 if name == "gain" else None,
        floor=1e-3 * loss if name == "gain" else 0.0,
        two_sided=name == "calibration",
        seed=spec.training.seed,
    )


def _max_share(values: np.ndarray) -> float:
    """The highest share that a quiet night had."""
    import numpy as np

    known = values[np.isfinite(values)]
    return round(float(known.max()), 6) if len(known) else 0.0


def stored_baseline(champion: registry.ModelVersion) -> dict[str, Any] | None:
    """The watch that a version was registered with; None for one that was trained before there was such a thing.

    Raises:
        ArtifactError: it is damaged.
    """
    try:
        registry.artifact(champion.run_id, ARTIFACT)
    except ArtifactError:
        return None
    found: dict[str, Any] = registry.load_json_artifact(champion, ARTIFACT)
    return found


def load_baseline(champion: registry.ModelVersion, spec: ModelSpec) -> MonitoringBaseline:
    """What a champion is watched by; where it has no watch, every followed number is undetermined.

    Raises:
        ArtifactError: it is damaged.
    """
    import numpy as np

    content = stored_baseline(champion)
    if content is None:
        return MonitoringBaseline(LossEstimator(spec.task, spec.metric), {}, np.zeros(1), {}, {}, {}, 0.0, {})
    errors = registry.artifact(champion.run_id, ERROR_MODEL_ARTIFACT) if spec.task == "regression" else None
    return parse_baseline(content, spec, errors)


def parse_baseline(content: Any, spec: ModelSpec, errors: Path | None) -> MonitoringBaseline:
    """The stored watch.

    Raises:
        ArtifactError: it is not one.
    """
    import numpy as np
    import xgboost

    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        booster = xgboost.Booster({"nthread": 1}, model_file=errors) if errors else None
        return MonitoringBaseline(
            LossEstimator(spec.task, spec.metric, booster),
            {str(n): CusumBaseline(**b) for n, b in content["baselines"].items()},
            np.asarray(content["shares"], np.float64),
            {str(c): [str(v) for v in values] for c, values in content["groups"].items()},
            {str(c): float(v) for c, v in content["nulls"].items()},
            {str(c): float(v) for c, v in content["unseen"].items()},
            float(content["loss"]),
            {str(c): [float(v) for v in values] for c, values in content["bins"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, xgboost.core.XGBoostError) as error:
        raise ArtifactError(
            f"what the champion is watched by cannot be used: {error}",
            "train again: it is made with the model",
        ) from error
