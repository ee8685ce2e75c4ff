"""What the rows of a model's tables mean, recorded in each table when it is created."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, generations


def definition(spec: ModelSpec, kind: str) -> dict[str, Any]:
    """What the rows of a table mean; a change of it is not a matter of types.

    Args:
        spec: the model.
        kind: kind of the table.
    """
    if kind == "published":
        return {}
    content: dict[str, Any] = {"key": sorted(spec.data.key)}
    if kind != "quarantine":
        content["task"] = spec.task
    if kind == "labels":
        content["label.expression"] = spec.label.expression
    return content


def properties(spec: ModelSpec, kind: str) -> dict[str, str]:
    """The properties of a table in its first generation."""
    return generations.properties(definition(spec, kind))


def writer_of(spec: ModelSpec, kind: str, distinct: Collection[str] = ()) -> delta_tables.Writer:
    """Write to a model's table; a table that the first write creates records what its rows mean.

    Args:
        spec: the model.
        kind: kind of the table.
        distinct: see `delta_tables.Writer`.
    """
    return delta_tables.Writer(delta_tables.table_uri(kind, spec.name), distinct, properties(spec, kind))
