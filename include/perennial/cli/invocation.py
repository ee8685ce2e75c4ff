"""What a step that is run by hand, or in a pod, is called with: its model, its arguments, who decides."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from perennial.cli import terminal
from perennial.core.errors import SpecError

if TYPE_CHECKING:
    from perennial.spec.model_spec import ModelSpec


def resolve_arguments(step: str, spec: ModelSpec, given: dict[str, Any]) -> dict[str, Any]:
    """What the step is called with; who decides is filled in."""
    from perennial.steps import dispatch

    if step not in dispatch.STEPS:
        dispatch.run(step, spec)
    takes = dispatch.takes(step)
    arguments = {name: value for name, value in given.items() if value is not None}
    if "actor" in takes:
        arguments.setdefault("actor", terminal.user())
    if "backfill" in takes:
        arguments.setdefault("backfill", False)
    return arguments


def resolve_spec(model: str | None, spec_file: str | None) -> ModelSpec:
    """The model to run: from its folder, or as it was handed over.

    Raises:
        SpecError: neither is given, or what is given cannot be used.
    """
    from pydantic import ValidationError

    from perennial.spec import catalog
    from perennial.spec.model_spec import ModelSpec
    from perennial.storage import object_store

    if spec_file is None:
        if model is None:
            raise SpecError("no model is named", "give --model NAME, or --spec-file FILE")
        return catalog.load_model_by_name(model)
    try:
        text = sys.stdin.read() if spec_file == "-" else object_store.read_text(spec_file)
        found = ModelSpec.from_bundle(json.loads(text))
    except OSError as error:
        raise SpecError(f"{spec_file} cannot be read: {error.strerror}", "name the bundle's file") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SpecError(
            f"{spec_file}: {where}: {first['msg']}", "make it with ModelSpec.bundle() of the same version"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(
            f"{spec_file} is not a model's bundle: {type(error).__name__}: {error}",
            "make it with ModelSpec.bundle()",
        ) from None
    if model not in (None, found.name):
        raise SpecError(
            f"{spec_file} holds model {found.name}, --model says {model}", "leave one of them out"
        )
    return found
