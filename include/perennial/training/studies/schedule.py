"""When the studies of a challenger are due, and how long they may take.

They are due once in `EVERY`, in a training that has a champion to compare with, so that the first model is there
sooner. A study takes no longer than the training took so far. A failure is logged and does not fail the training.
"""

from __future__ import annotations

import time

from perennial.core.durations import Duration
from perennial.core.partitions import nominal_start
from perennial.storage import pages
from perennial.training.candidates import Candidate, TrainingJob
from perennial.training.studies import usefulness

#: Time from one study to the next.
EVERY = Duration(28, "day")
#: Seconds that a study may take even if the training took less.
MIN_SECONDS = 60.0


def run(job: TrainingJob, candidate: Candidate, as_of: str, fit_seconds: float) -> None:
    """Make the studies that are due, and add what is known to `Candidate.studies`.

    Args:
        job: inputs of the training; what several workers fit is not studied, since all rows must be in one process.
        candidate: the challenger.
        as_of: partition date of the training.
        fit_seconds: how long the training took so far.
    """
    spec = job.source.spec
    minutes = spec.training.usefulness_minutes
    known, _ = pages.attempt(
        f"the usefulness of the features of {spec.name}", lambda: usefulness.latest(spec.name, as_of)
    )
    if known is not None:
        known = usefulness.of_same_features(known, candidate.model)
    is_recent = known is not None and nominal_start(as_of) < EVERY.after(known["as_of"], spec.cadence)
    if minutes and job.workers == 1 and (job.champion or job.not_compared) and not is_recent:
        deadline = time.monotonic() + min(60 * minutes, max(MIN_SECONDS, fit_seconds))
        folder = job.folder / "usefulness"
        folder.mkdir()
        measured, _ = pages.attempt(
            f"the usefulness of the features of {spec.name}",
            lambda: usefulness.measure(job.source, candidate, as_of, folder, deadline, known),
        )
        known = measured or known
    if known is not None:
        candidate.studies[usefulness.ARTIFACT] = known
