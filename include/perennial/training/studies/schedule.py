"""When the studies of a challenger are due, and how long they may take.

They are due once in `EVERY`, in a training that has a champion to compare with, so that the first model is there
sooner; the staleness curve in each such training if the trigger ``worth`` uses it. A study takes no longer than the
training took so far. What is not measured is kept from the training before. A failure is logged and does not fail the
training.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from perennial.core.durations import Duration
from perennial.core.partitions import nominal_start
from perennial.spec.model_spec import ModelSpec
from perennial.storage import manifests, pages
from perennial.training.candidates import Candidate, TrainingJob
from perennial.training.studies import staleness, usefulness

#: Time from one study to the next.
EVERY = Duration(28, "day")
#: Seconds that a study may take even if the training took less.
MIN_SECONDS = 60.0
Result = TypeVar("Result", bound=Any)


def run(job: TrainingJob, candidate: Candidate, as_of: str, fit_seconds: float) -> None:
    """Make the studies that are due, and add what is known to `Candidate.studies`.

    Args:
        job: inputs of the training; what several workers fit is not studied, since all rows must be in one process.
        candidate: the challenger.
        as_of: partition date of the training.
        fit_seconds: how long the training took so far.
    """
    spec = job.source.spec
    earlier = pages.attempt(f"the studies of {spec.name}", lambda: _earlier(spec.name, as_of))[0] or {}
    useful, curve = earlier.get("usefulness"), earlier.get("staleness")
    if useful:
        useful = usefulness.of_same_features(useful, candidate.model)
    seconds = min(60 * spec.training.study_minutes, max(MIN_SECONDS, fit_seconds))
    may_run = bool(seconds) and job.workers == 1 and bool(job.champion or job.not_compared)

    def attempt(name: str, measure: Callable[[float], Result | None], known: Result | None) -> Result | None:
        measured, _ = pages.attempt(f"{name} of {spec.name}", lambda: measure(time.monotonic() + seconds))
        return measured or known

    folder = job.folder / "studies"
    if may_run:
        (folder / "usefulness").mkdir(parents=True)
    if may_run and _is_due(spec, useful, as_of):
        useful = attempt(
            "the usefulness of the features",
            lambda deadline: usefulness.measure(
                job.source, candidate, as_of, folder / "usefulness", deadline, useful
            ),
            useful,
        )
    if may_run and ("worth" in spec.retraining.triggers or _is_due(spec, curve, as_of)):
        curve = attempt(
            "the staleness curve",
            lambda deadline: staleness.measure(job.source, candidate, as_of, folder, deadline),
            curve,
        )
    known = {usefulness.ARTIFACT: useful, staleness.ARTIFACT: curve}
    candidate.studies.update({name: result for name, result in known.items() if result})


def _earlier(model: str, as_of: str) -> dict[str, Any]:
    """The result of the latest training as of a date, or before it; empty if there is none."""
    manifest = manifests.latest(model, "train", as_of)
    return manifest.result if manifest else {}


def _is_due(spec: ModelSpec, known: Any, as_of: str) -> bool:
    return not known or nominal_start(as_of) >= EVERY.after(known["as_of"], spec.cadence)
