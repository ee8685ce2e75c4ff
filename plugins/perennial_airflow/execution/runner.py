"""Runs steps: in this process or in a pod, as the compute profile of the spec says. Only this module decides."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from perennial.core.errors import PerennialError
from perennial.spec import compute_profile
from perennial.steps import dispatch, summaries
from perennial.storage import manifests
from perennial_airflow import airflow_connections
from perennial_airflow.web.links import report_url

if TYPE_CHECKING:
    from airflow.sdk import Context

    from perennial.spec.compute_profile import ComputeProfile
    from perennial.spec.model_spec import ModelSpec
    from perennial.spec.sections import Step

#: Niceness (as of `nice`) of a task that works on a range in this process: runs of single partitions must not
#: wait for it.
RANGE_NICENESS = 10


def profile_of(spec: ModelSpec, step: str) -> ComputeProfile:
    """The compute profile of a heavy step.

    Raises:
        SpecError: there is no such profile, or its file is broken.
    """
    return compute_profile.load_profile(
        spec.compute.get(cast("Step", step)) or compute_profile.default_profile()
    )


def run_by_profile(step: str, spec: ModelSpec, context: Context, **arguments: Any) -> dict[str, Any]:
    """Run a heavy step where its compute profile says, check that it wrote its manifests, and log what it did.

    Args:
        step: name of the step.
        spec: the model.
        context: Airflow's context of the task.
        arguments: of the step.

    Raises:
        PerennialError: the step failed, or a partition of its result has no manifest.
    """
    result = _run(step, spec, profile_of(spec, step), context, arguments)
    for key in result["partitions"] if "partitions" in result else [arguments["as_of"]]:
        if manifests.read(spec.name, step, key) is None:
            raise PerennialError(
                f"step {step} ended without its manifest ({manifests.uri(spec.name, step, key)})",
                "it was probably stopped from outside: read the log, then clear the task",
                model=spec.name,
                partition=key,
            )
    summaries.log_summary(step, spec, result, report_url)
    return result


def run_as_training(step: str, spec: ModelSpec, context: Context, **arguments: Any) -> dict[str, Any]:
    """Run a step that writes no manifest where the model's trainings run, and log what it did."""
    result = _run(step, spec, profile_of(spec, "train"), context, arguments)
    summaries.log_summary(step, spec, result, report_url)
    return result


def _run(
    step: str, spec: ModelSpec, profile: ComputeProfile, context: Context, arguments: dict[str, Any]
) -> dict[str, Any]:
    if profile.runs_in_pods:
        from perennial_airflow.execution import pods  # the pod operator takes seconds to import

        return pods.run(step, spec, profile, arguments, context)
    if arguments.get("end") not in (None, arguments.get("start")):
        os.setpriority(os.PRIO_PROCESS, 0, RANGE_NICENESS)
    workers = profile.worker_count(step)
    with airflow_connections.provided(spec, step):
        return dispatch.run(step, spec, **arguments, **({"workers": workers} if workers > 1 else {}))


def run_inline(step: str, spec: ModelSpec, **arguments: Any) -> dict[str, Any]:
    """Run a light step, always in this process, whatever the profile; log what it did."""
    with airflow_connections.provided(spec, step):
        result = dispatch.run(step, spec, **arguments)
    summaries.log_summary(step, spec, result, report_url)
    return result
