"""Champion and challenger on nights that neither has seen, compared in pairs."""

from __future__ import annotations

from perennial.lifecycle.trials import BEGUN, FAILED, PASSED, _Result, active_trial
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec


def evaluate_trial(
    spec: ModelSpec, champion: registry.ModelVersion, as_of: str, labels_until: str
) -> _Result | None:
    """Champion and challenger on the nights that neither has learned from or was judged on.

    Returns:
        None where no challenger is on trial beside this champion; else ``version``, ``as_of`` (of its training),
        ``nights``, ``gain`` with its interval ``low`` to ``high`` (shares of the champion's loss), and ``state``:
        ``begun`` while nights are missing, then ``passed`` or ``failed``; of a split also what
        `ab_test.compare_arms` returns.
    """
    import numpy as np
    from scipy import stats

    from perennial.core import dates
    from perennial.features.engine import FeatureQuery
    from perennial.lifecycle import ab_test
    from perennial.monitoring.nightly_sample import sample_nights

    record = active_trial(spec)
    if record is None or record["evidence"]["champion"] != champion.version:
        return None
    challenger = registry.version(spec.name, record["model_version"])
    first = dates.add_days(challenger.tags["judged_on"].split("..")[1], 1)
    found: _Result = {
        "version": challenger.version,
        "as_of": record["partition"],
        "first": first,
        "state": BEGUN,
    }
    if spec.retraining.ab_share:
        return found | ab_test.compare_arms(spec, champion, challenger, record["partition"], as_of)
    sides = []
    for version in (champion, challenger):
        trained = registry.spec(version)
        seen = sample_nights(
            spec, registry.load(version), FeatureQuery(trained), first, as_of, labels_until=labels_until
        ).labelled
        sides.append(seen.mean(seen.losses(spec.task, spec.metric)))
    old, new = sides
    known = np.isfinite(old) & np.isfinite(new)
    nights = int(known.sum())
    if nights < max(2, spec.retraining.trial_days):
        return found | {"nights": nights, "gain": None, "low": None, "high": None}
    saved, scale = (old - new)[known], max(float(old[known].mean()), 1e-12)
    low, high = stats.t.interval(spec.gate.confidence, nights - 1, saved.mean(), max(stats.sem(saved), 1e-12))
    passed = low / scale > spec.gate.margin
    numbers = {"gain": saved.mean() / scale, "low": low / scale, "high": high / scale}
    return found | {
        "nights": nights,
        **{k: round(float(v), 6) for k, v in numbers.items()},
        "state": PASSED if passed else FAILED,
    }
