"""Where a step runs. The compute profile of the spec decides; this is the only place that knows how."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from perennial import manifest
from perennial.errors import PerennialError

if TYPE_CHECKING:
    from perennial.spec import ModelSpec


class Runner(Protocol):
    """A place where steps run."""

    def run(self, step: str, spec: ModelSpec, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run ``perennial.steps.run(step, spec, **arguments)`` there, wait for its end, return its result."""


class LocalRunner:
    """In this very process: the Airflow worker."""

    def run(self, step: str, spec: ModelSpec, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run the step."""
        from perennial import steps

        return steps.run(step, spec, **arguments)


RUNNERS: dict[str, Runner] = {"local": LocalRunner()}


def heavy(step: str, spec: ModelSpec, **arguments: Any) -> dict[str, Any]:
    """Run a heavy step where its compute profile says, and believe the manifests that it left, not its word.

    Raises:
        PerennialError: the step failed, or claims to have done a partition that has no manifest.
    """
    profile = spec.compute.get(step, "local")  # type: ignore[call-overload]
    result = RUNNERS[profile].run(step, spec, arguments)
    for key in result["partitions"] if "partitions" in result else [arguments["as_of"]]:
        if manifest.read(spec.name, step, key) is None:
            raise PerennialError(
                f"step {step} ended without its manifest ({manifest.uri(spec.name, step, key)})",
                "it was probably stopped from outside: read the log, then clear the task",
                model=spec.name,
                partition=key,
            )
    return result


def light(step: str, spec: ModelSpec, **arguments: Any) -> dict[str, Any]:
    """Run a light step: always in this process, whatever the profile."""
    return LocalRunner().run(step, spec, arguments)
