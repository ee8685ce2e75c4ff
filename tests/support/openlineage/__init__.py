"""Checks events against OpenLineage's client, whose classes are generated from the published schemas."""

from __future__ import annotations

import enum
import functools
import importlib
import json
import pkgutil
import types
import typing
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attr
import jsonschema
from openlineage.client import generated
from openlineage.client.generated import base

#: Facets of this project, by the address of their schema: its file.
OWN = {
    "urn:perennial:openlineage:PerennialModelRunFacet:1-0-0": Path(__file__).parents[3]
    / "docs/openlineage/PerennialModelRunFacet-1-0-0.json"
}


class InvalidEventError(Exception):
    """An event is not what the schemas require; the message says where."""


@functools.cache
def _facets() -> dict[str, type]:
    """The published facets, by the address of their schema."""
    modules = [
        importlib.import_module(f"{generated.__name__}.{m.name}")
        for m in pkgutil.iter_modules(generated.__path__)
    ]
    classes = [
        c for m in modules for c in vars(m).values() if isinstance(c, type) and issubclass(c, base.BaseFacet)
    ]
    return {c._get_schema(): c for c in classes}


def check(event: dict[str, Any]) -> list[str]:
    """Check an event of a run; returns the names of the facets that were checked against a schema of their own.

    Raises:
        InvalidEventError: something is missing, or has another type.
    """
    checked: list[str] = []
    _check(base.RunEvent, event, "event", checked)
    uuid.UUID(event["run"]["runId"])
    datetime.fromisoformat(event["eventTime"])
    return checked


def _check(kind: Any, value: Any, path: str, checked: list[str]) -> None:
    """Check a value against a type of the client."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return
        (kind,) = (a for a in arguments if a is not type(None))
        _check(kind, value, path, checked)
    elif origin in (list, dict):
        _require(isinstance(value, origin), path, f"is no {origin.__name__}")
        items = enumerate(value) if origin is list else value.items()
        for key, item in items:
            _check(arguments[-1], item, f"{path}.{key}", checked)
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        _require(value in [member.value for member in kind], path, f"is {value!r}")
    elif isinstance(kind, type) and attr.has(kind):
        _require(isinstance(value, dict), path, "is no object")
        _check_object(_facet_class(kind, value, path, checked), value, path, checked)
    else:
        _require(
            isinstance(value, kind) and not (kind is int and isinstance(value, bool)), path, f"is no {kind}"
        )


def _facet_class(kind: type, value: dict[str, Any], path: str, checked: list[str]) -> type:
    """The class of a facet, by the address of its schema; that of the base if it is a facet of somebody else."""
    if not issubclass(kind, base.BaseFacet):
        return kind
    url = value.get("_schemaURL", "")
    _require(bool(urlsplit(url).scheme), path, "has no address of its schema")
    _require(bool(urlsplit(value.get("_producer", "")).scheme), path, "has no producer")
    if url in OWN:
        try:
            jsonschema.validate(value, json.loads(OWN[url].read_text()))
        except jsonschema.ValidationError as error:
            raise InvalidEventError(f"{path}: {error.message}") from error
    elif url not in _facets():
        return kind
    checked.append(path.rpartition(".")[2])
    facet = _facets().get(url, kind)
    _require(issubclass(facet, kind), path, f"is no {kind.__name__}")
    return facet


def _check_object(kind: type, value: dict[str, Any], path: str, checked: list[str]) -> None:
    hints = typing.get_type_hints(kind)
    for field in attr.fields(kind):
        if field.name not in value:
            optional = type(None) in typing.get_args(hints[field.name])
            _require(optional, path, f"lacks {field.name}")
        else:
            _check(hints[field.name], value[field.name], f"{path}.{field.name}", checked)


def _require(fulfilled: bool, path: str, problem: str) -> None:
    if not fulfilled:
        raise InvalidEventError(f"{path} {problem}")
