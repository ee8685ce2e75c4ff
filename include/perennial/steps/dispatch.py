"""Run a step by its name; it is imported only when it is run."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from perennial.core import redaction, unexpected_errors
from perennial.core.errors import PerennialError
from perennial.spec.model_spec import ModelSpec
from perennial.storage import ledger, leftovers

#: Names of the steps; each is a function in the module of the same name.
STEPS = (
    "data",
    "train",
    "promote",
    "score",
    "monitor",
    "decide",
    "conclude",
    "rollback",
    "publish_predictions",
    "reproduce",
    "erase",
)


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


@redaction.redact_errors(lambda step, spec, **_: spec.hides_values)
def run(step: str, spec: ModelSpec, **arguments: Any) -> dict[str, Any]:
    """Run one step.

    Args:
        step: one of `STEPS`.
        spec: the model.
        arguments: of the step's function.

    Returns:
        The step's result: small and JSON-serialisable.

    Raises:
        PerennialError: there is no such step, its arguments are wrong, or name a date in the future; or it failed.
            A library's error that no module foresaw is one of these, too: `unexpected_errors.translate`.
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
    for name in ("start", "end", "as_of"):
        if spec.cadence.is_key(arguments.get(name) or ""):  # the step itself refuses what is no key
            spec.cadence.refuse_future(arguments[name], name)
    head = ledger.head(spec.name)
    try:
        result = dict(function(spec, **arguments))
        if leftovers.sweep_daily():
            _delete_unused_tables()
    except BaseException as error:
        if not unexpected_errors.is_failure(error):
            raise
        _write_status(spec)
        _anchor_ledger(spec, head)
        if isinstance(error, PerennialError):
            raise
        raise unexpected_errors.translate(
            error,
            f"step {step}",
            hide=spec.hides_values,
            model=spec.name,
            partition=_partition(arguments),
        ) from error
    _write_status(spec)
    _anchor_ledger(spec, head)
    return result


def _delete_unused_tables() -> None:
    from perennial.lifecycle import unused_feature_tables  # not at the top: this is needed once a day

    unused_feature_tables.delete_unused_quietly()


def _write_status(spec: ModelSpec) -> None:
    """Write the model's status record, whether the step succeeded or failed, which it cannot change."""
    from perennial.status import refresh

    refresh.refresh_quietly(spec)


def _anchor_ledger(spec: ModelSpec, head: str) -> None:
    """Anchor what the step recorded outside the lake."""
    from perennial.lifecycle import ledger_anchors

    ledger_anchors.write_quietly(spec.name, head)


def _partition(arguments: Mapping[str, Any]) -> str | None:
    """The partition, or range ``start..end``, that a step's arguments name."""
    start, end = arguments.get("start") or arguments.get("as_of"), arguments.get("end")
    return f"{start}..{end}" if end and end != start else start


def parameter_names(step: str) -> list[str]:
    """Names of a step's arguments, without the spec.

    Args:
        step: one of `STEPS`.

    Raises:
        PerennialError: there is no such step.
    """
    return [p for p in inspect.signature(load_step(step)).parameters if p != "spec"]
