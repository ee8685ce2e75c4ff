"""Commands about incidents: show them, and mute what is known."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from perennial.cli import terminal
from perennial.core.errors import PerennialError

app = typer.Typer()


@app.command()
def incidents(
    model: Annotated[str | None, typer.Argument(help="The model's name; all models when not given.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Those that are over, too: the last one a signal.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show what is wrong with models, since when, what is muted, and what could not be delivered."""
    from perennial.alerting import incidents as its
    from perennial.spec import catalog

    specs = {model: catalog.load_model_by_name(model)} if model else catalog.load_models()[0]
    books = {name: its.read_log(name) for name in specs}
    if as_json:
        print(json.dumps({name: asdict(book) for name, book in books.items()}, default=str))  # noqa: T201
        return
    table = Table(box=None, pad_edge=False)
    for title in ("model", "signal", "#", "state", "since", "last seen", "times", "reason"):
        table.add_column(title, justify="right" if title in ("#", "times") else "left", overflow="fold")
    waiting = 0
    for name, book in books.items():
        waiting += len(book.outbox)
        shown = [*book.open, *(i for i in book.incidents.values() if i.closed and every)]
        for item in shown:
            hushed = book.muted(specs[name], item.signal, item.last)
            state = (
                f"over at {item.closed}" if item.closed else f"{item.severity}{', muted' if hushed else ''}"
            )
            row = (
                name,
                item.signal,
                item.number,
                state,
                item.first,
                item.last,
                item.count,
                item.worst_reason,
            )
            table.add_row(*(Text(str(value)) for value in row))
    console = terminal.console()
    if table.row_count:
        console.print(table)
    else:
        console.print("No incident is open.")
    for name, book in books.items():
        for mute in book.mutes:
            console.print(
                Text(f"{name}: {', '.join(mute['signals'])} muted until {mute['until']}: {mute['reason']}")
            )
    if waiting:
        console.print(
            f"{waiting} notice{'s' * (waiting > 1)} could not be delivered yet; the next task tries again."
        )


@app.command()
def mute(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    signal: Annotated[str, typer.Argument(help="The signal, or a pattern: drift, 'failure:*'; all.")] = "*",
    until: Annotated[
        str, typer.Option(help="Last partition date that is muted, YYYY-MM-DD; one in the past ends a mute.")
    ] = "",
    reason: Annotated[str, typer.Option(help="Why; kept in the ledger.")] = "",
) -> None:
    """Tell nobody of a signal for a while. It is recorded all the same, and stands in the morning's digest."""
    from pydantic import ValidationError

    from perennial.alerting import incidents as its
    from perennial.spec import catalog
    from perennial.spec.alerts import Mute

    spec = catalog.load_model_by_name(model)
    said: dict[str, Any] = {"signals": [signal], "until": until, "reason": reason}
    try:
        wanted = Mute.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        raise PerennialError(
            f"{key} is {said[key]!r}: {first['msg']}",
            f"perennial mute {model} drift --until 2026-01-31 --reason 'why'",
            model=model,
        ) from None
    its.mute_signals(spec.name, wanted, terminal.user())
    terminal.console().print(f"{model}: {signal} is muted until {wanted.until}.")
