"""The commands ``perennial erase``, ``hold``, ``release`` and ``retention``: what the law asks of a model's data."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from perennial.cli import terminal

__all__ = ["add_commands"]

_Model = Annotated[str, typer.Argument(help="Name of the model.")]
_Reason = Annotated[str, typer.Option(help="Why, for the ledger.")]
_Actor = Annotated[str, typer.Option(help="Who asks for it, for the ledger; default: the user.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (erase, hold, release, retention):
        app.command()(command)


def erase(
    model: _Model,
    key: Annotated[
        list[str] | None,
        typer.Argument(
            help="COLUMN=VALUE for each column of one key. It stays in the shell's history: use --keys."
        ),
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(help="CSV file of keys whose first line names the columns; -: standard input."),
    ] = None,
    request: Annotated[str | None, typer.Option(help="Name of a request that was made before.")] = None,
    only_request: Annotated[
        bool, typer.Option("--only-request", help="Make the request and print its name, for the DAG.")
    ] = False,
    hidden: Annotated[
        bool,
        typer.Option("--hidden", help="Also remove records of quarantine that hide a column of the keys."),
    ] = False,
    actor: _Actor = "",
    as_json: _Json = False,
) -> None:
    """Erase the rows of keys from all tables of a model, their older versions and their logs."""
    from perennial.core.errors import PerennialError
    from perennial.governance import erasure_keys
    from perennial.spec import catalog
    from perennial.steps import dispatch, summaries

    spec, person = catalog.load_model_by_name(model), actor or terminal.user()
    if sum(map(bool, (key, keys, request))) != 1:
        raise PerennialError("give one of: COLUMN=VALUE, --keys, --request", "see perennial erase --help")
    name = request or ""
    if not request:
        one = [dict(text.partition("=")[::2] for text in key or ())]
        given = one if key else erasure_keys.read_keys(None if keys == "-" else Path(str(keys)), sys.stdin)
        name = erasure_keys.request_erasure(spec, given, person).identifier
    if only_request:
        print(json.dumps({"request": name}) if as_json else name)  # noqa: T201
        return
    result = dispatch.run("erase", spec, request=name, actor=person, hidden=hidden)
    if as_json:
        print(json.dumps(result))  # noqa: T201
        return
    for line in summaries.summarise("erase", spec, result).text():
        terminal.console().print(Text(line))


def hold(model: _Model, reason: _Reason, actor: _Actor = "") -> None:
    """Hold what is stored of a model, as for an audit: its retention deletes nothing, and no rows are erased."""
    from perennial.governance import holds
    from perennial.spec import catalog

    catalog.load_model_by_name(model)
    holds.hold(model, reason=reason, actor=actor or terminal.user())
    terminal.console().print(Text(f"{model} is held until perennial release {model}."))


def release(
    model: _Model,
    reason: _Reason,
    hold: Annotated[
        int | None, typer.Option(help="Number of the hold's record in the ledger, if there are several.")
    ] = None,
    actor: _Actor = "",
) -> None:
    """End a hold on a model; others go on."""
    from perennial.governance import holds
    from perennial.spec import catalog
    from perennial.storage import ledger

    catalog.load_model_by_name(model)
    holds.release(model, reason=reason, actor=actor or terminal.user(), number=hold)
    others = ledger.open_holds(model)
    text = f"still held by {holds.describe(others[0])}" if others else "no longer held"
    terminal.console().print(Text(f"{model} is {text}."))


def retention(
    model: _Model,
    as_of: Annotated[
        str,
        typer.Option(
            help="Partition from which ages are counted; default: the one that lasts at the moment."
        ),
    ] = "",
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete it; otherwise nothing is deleted.")
    ] = False,
    actor: _Actor = "",
    as_json: _Json = False,
) -> None:
    """Show what a model takes in the lake, and what is older than its spec keeps; with --delete, delete it."""
    from datetime import UTC, datetime

    from perennial.governance import retention as retention_module
    from perennial.spec import catalog

    spec = catalog.load_model_by_name(model)
    day = spec.cadence.parse(as_of) if as_of else spec.cadence.key_of(datetime.now(UTC))
    result = retention_module.apply(spec, as_of=day, actor=actor or terminal.user(), dry_run=not delete)
    if as_json:
        print(json.dumps(result))  # noqa: T201
        return
    table = terminal.table(
        "table", "MB", "of older versions", "files", right=("MB", "of older versions", "files")
    )
    for use in result["disk"]:
        sizes = (f"{size / 1e6:,.1f}" for size in (use["bytes"], use["older"]))
        table.add_row(Text(use["name"]), *sizes, f"{use['files']:,}")
    terminal.console().print(table)
    verb = "Deleted" if delete else "To be deleted with --delete"
    terminal.console().print(Text(f"{verb}: {retention_module.summarise(result)}."))
    if result["in_use"]:
        terminal.console().print(
            Text(f"In use, and kept with all they need: versions {', '.join(result['in_use'])}.")
        )
