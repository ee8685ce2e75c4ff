"""The command ``perennial missing``: what is due and not done, by stage, and the command that does it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from perennial.cli import terminal
from perennial.core.partitions import DAILY, cadence_of

if TYPE_CHECKING:
    from perennial.spec.model_spec import ModelSpec

__all__ = ["show"]

#: Columns of the table: title, and key of a row.
_COLUMNS = {
    "model": "model", "not": "stage", "partitions": "partitions", "number": "number", "state": "state",
    "command": "command",
}  # fmt: skip


def show(model: str | None, until: str | None, *, as_json: bool) -> bool:
    """Print what is overdue.

    Args:
        model: name of the model; all models when None.
        until: last partition, or date, that is due; the last one that has ended when None.
        as_json: print JSON.

    Returns:
        Whether anything is overdue, or a model could not be examined.
    """
    from perennial.spec import catalog
    from perennial.status import overdue

    moment = datetime.now(UTC)
    last = until or DAILY.last_ended(moment)
    if until and cadence_of(until).parse(until, "until"):
        cadence_of(until).refuse_future(until, "until")
    specs, errors = catalog.load_models() if model is None else ({}, [])
    if model is not None:
        specs = {model: catalog.load_model_by_name(model)}
    rows = [
        asdict(item)
        for spec in specs.values()
        for item in overdue.ranges(spec, _last_due(spec, until, moment))
    ]
    if as_json:
        print(json.dumps(rows))  # noqa: T201
    elif rows:
        table = terminal.table(*_COLUMNS, right=("number",))
        for row in rows:
            table.add_row(*(Text(str(row[key])) for key in _COLUMNS.values()))
        terminal.console().print(table)
    else:
        terminal.console().print(f"Nothing that is due up to {last} is undone.")
    for error in errors:
        Console(stderr=True, highlight=False).print(Text(f"not examined: {error}", "red"))
    return bool(rows or errors)


def _last_due(spec: ModelSpec, until: str | None, moment: datetime) -> str:
    """The last partition of a model that is due: the one given, or the last that ended with a date, or before now."""
    if until is None:
        return spec.cadence.last_ended(moment)
    if spec.cadence.is_key(until):
        return until
    given = replace(cadence_of(until), timezone=spec.data.timezone)
    return spec.cadence.last_ended(given.end_of(until))
