"""Run a step by its name; it is imported only when it is run."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from perennial.core.errors import PerennialError
from perennial.spec.model_spec import ModelSpec

#: Names of the steps; each is a function in the module of the same name.
STEPS = ("data", "train", "promote", "score", "monitor", "decide", "conclude", "rollback")


def load_step(step: str) -> Callable[..., Mapping[str, Any]]:
    """Import a step's function.

    Args:
        step: one of `STEPS`.

    Raises:
        PerennialError: there is no such step.
    """
    if step not in STEPS:
        raise PerennialError(f"there is no step {step!r}", f"the steps are: {', '.join(STEPS)}")
    function: Callable[..., Mapping[str, Any]] = getattr(
        importlib.import_module(f"perennial.steps.{step}"), step
    )
    return function


def run(step: str, spec: ModelSpec, **arguments: Any) -> dict[str, Any]:
    """Run one step.

    Args:
        step: one of `STEPS`.
        spec: the model.
        arguments: of the step's function.

    Returns:
        The step's result: small and JSON-serialisable.

    Raises:
        PerennialError: there is no such step, its arguments are wrong, or it failed.
    """
    function = load_step(step)
    try:
        inspect.signature(function).bind(spec, **arguments)
    except TypeError as error:
        raise PerennialError(
            # Python 3.12 says "keyword-only argument" where 3.11 says "argument".
            f"step {step}: {str(error).replace('keyword-only ', '')}",
            f"its arguments are: {', '.join(parameter_names(step))}",
            model=spec.name,
        ) from None
    return dict(function(spec, **arguments))


def parameter_names(step: str) -> list[str]:
    """Names of a step's arguments, without the spec.

    Args:
        step: one of `STEPS`.

    Raises:
        PerennialError: there is no such step.
    """
    return [p for p in inspect.signature(load_step(step)).parameters if p != "spec"]
