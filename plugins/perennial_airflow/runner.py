"""Where a step runs. The compute profile of the spec decides; this is the only place that knows how."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from perennial.core.errors import PerennialError
from perennial.spec import compute_profile
from perennial.steps import dispatch
from perennial.storage import manifests

if TYPE_CHECKING:
    from airflow.sdk import Context

    from perennial.spec.model_spec import ModelSpec

#: How far the task of a range steps back behind its neighbours on this machine, as `nice` counts: it catches up, and
#: what is done nightly, or by what it has caught up with, should not wait for it.
BEHIND = 10


def profile(spec: ModelSpec, step: str) -> compute_profile.ComputeProfile:
    """The compute profile of a heavy step.

    Raises:
        SpecError: there is no such profile, or its file is broken.
    """
    return compute_profile.load(spec.compute.get(step) or compute_profile.default())  # type: ignore[call-overload]


def heavy(step: str, spec: ModelSpec, context: Context, **arguments: Any) -> dict[str, Any]:
    """Run a heavy step where its compute profile says, and believe the manifests that it left, not its word.

    Raises:
        PerennialError: the step failed, or claims to have done a partition that has no manifest.
    """
    place = profile(spec, step)
    if place.pods:
        from perennial_airflow import pods  # the pod operator takes seconds to import

        result = pods.run(step, spec, place, arguments, context)
    else:
        if arguments.get("end") not in (None, arguments.get("start")):
            os.setpriority(os.PRIO_PROCESS, 0, BEHIND)
        several = {"workers": crew} if (crew := place.crew(step)) > 1 else {}
        result = dispatch.run(step, spec, **arguments, **several)
    for key in result["partitions"] if "partitions" in result else [arguments["as_of"]]:
        if manifests.read(spec.name, step, key) is None:
            raise PerennialError(
                f"step {step} ended without its manifest ({manifests.uri(spec.name, step, key)})",
                "it was probably stopped from outside: read the log, then clear the task",
                model=spec.name,
                partition=key,
            )
    return result


def light(step: str, spec: ModelSpec, **arguments: Any) -> dict[str, Any]:
    """Run a light step: always in this process, whatever the profile."""
    return dispatch.run(step, spec, **arguments)
