"""The steps, by name: what DAGs, pods and the command line run. Each is imported only when it is run."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from perennial.core.errors import PerennialError
from perennial.spec.model_spec import ModelSpec

#: Step name: the module that holds the function of that name.
STEPS = {
    "data": "perennial.steps.data",
    "train": "perennial.steps.train",
    "promote": "perennial.lifecycle.promotion",
    "score": "perennial.steps.score",
    "monitor": "perennial.steps.monitor",
    "decide": "perennial.lifecycle.retraining",
    "conclude": "perennial.steps.conclude",
    "rollback": "perennial.lifecycle.promotion",
}


def run(step: str, spec: ModelSpec, **arguments: Any) -> dict[str, Any]:
    """Run one step; returns its small JSON-able result.

    Raises:
        PerennialError: no such step, or it does not take these arguments; and whatever the step raises.
    """
    if step not in STEPS:
        raise PerennialError(
            f"there is no step {step!r}", f"the steps are: {', '.join(STEPS)}", model=spec.name
        )
    function = getattr(importlib.import_module(STEPS[step]), step)
    try:
        inspect.signature(function).bind(spec, **arguments)
    except TypeError as error:
        raise PerennialError(
            # Python 3.12 says "keyword-only argument" where 3.11 says "argument".
            f"step {step}: {str(error).replace('keyword-only ', '')}",
            f"it takes: {', '.join(takes(step))}",
            model=spec.name,
        ) from None
    return dict(function(spec, **arguments))


def takes(step: str) -> list[str]:
    """Names of a step's arguments."""
    function = getattr(importlib.import_module(STEPS[step]), step)
    return [p for p in inspect.signature(function).parameters if p != "spec"]
