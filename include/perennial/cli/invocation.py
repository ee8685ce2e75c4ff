"""The model and the arguments of a step that the command line runs, for a person or in a pod."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from perennial.cli import terminal
from perennial.core.errors import PerennialError, SpecError

if TYPE_CHECKING:
    from perennial.spec.model_spec import ModelSpec


def resolve_arguments(step: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Select the arguments of a step, with defaults for ``actor`` and ``backfill``.

    Args:
        step: name of the step.
        options: options of the command line; those that are None or False were not given.

    Raises:
        PerennialError: there is no such step, or an option is given without a text.
    """
    from perennial.steps import dispatch

    for name, value in options.items():
        if isinstance(value, str) and not value.strip():
            raise PerennialError(
                f"--{name.replace('_', '-')} is empty", "give it a text, or leave the option out"
            )
    parameters = dispatch.parameter_names(step)
    arguments = {name: value for name, value in options.items() if value is not None and value is not False}
    if "actor" in parameters:
        arguments.setdefault("actor", terminal.user())
    if "backfill" in parameters:
        arguments.setdefault("backfill", False)
    return arguments


def resolve_spec(model: str | None, spec_file: str | None) -> ModelSpec:
    """Load the model to run, from its folder or from a bundle.

    Args:
        model: name of the model.
        spec_file: path or URI of the bundle; ``-`` reads standard input.

    Raises:
        SpecError: neither is given, or what is given cannot be used.
    """
    from pydantic import ValidationError

    from perennial.spec import catalog
    from perennial.spec.model_spec import ModelSpec
    from perennial.storage import object_store

    if spec_file is None:
        if model is None:
            raise SpecError("no model is given", "give --model NAME, or --spec-file FILE")
        return catalog.load_model_by_name(model)
    try:
        text = sys.stdin.read() if spec_file == "-" else object_store.read_text(spec_file)
        _check_name(spec_file, text)
        spec = ModelSpec.from_bundle(json.loads(text))
    except OSError as error:
        raise SpecError(f"{spec_file} cannot be read: {error.strerror}", "name the bundle's file") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SpecError(
            f"{spec_file}: {key}: {first['msg']}", "create it with ModelSpec.bundle() of the same version"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(
            f"{spec_file} is not a model's bundle: {type(error).__name__}: {error}",
            "create it with ModelSpec.bundle()",
        ) from None
    if model not in (None, spec.name):
        raise SpecError(
            f"{spec_file} holds model {spec.name}, --model is {model}", "remove one of the options"
        )
    return spec


def _check_name(spec_file: str, text: str) -> None:
    """Check a bundle whose file is named after its digest, as Airflow writes it for a pod."""
    name = re.search(r"/([0-9a-f]{64})\.json$", spec_file)
    if name and name[1] != hashlib.sha256(text.encode()).hexdigest():
        raise SpecError(
            f"{spec_file} was changed or damaged: its name is not the digest of its content",
            "remove it, and clear the task: Airflow writes it again",
        )
