"""The command ``perennial rollback-drill``: check the version that a rollback would go to."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.text import Text

from perennial.cli import terminal
from perennial.spec import catalog

__all__ = ["rollback_drill"]


def rollback_drill(
    model: Annotated[str | None, typer.Argument(help="Name of the model; all models by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check the version that a rollback would go to, without moving the champion. Exit status 1 if it would fail."""
    from perennial.lifecycle import rollback_drill as drill_module

    specs = {model: catalog.load_model_by_name(model)} if model else catalog.load_models()[0]
    results = {name: drill_module.drill(spec, actor=terminal.user()) for name, spec in specs.items()}
    if as_json:
        print(json.dumps(results))  # noqa: T201
    else:
        table = terminal.table(
            "model", "version", "outcome", "rows", "seconds", "reason", right=("rows", "seconds")
        )
        for name, result in results.items():
            texts = (
                name,
                result["version"],
                result["outcome"],
                f"{result['rows']:,}",
                f"{result['seconds']:.1f}",
            )
            table.add_row(*map(Text, (*texts, result["reason"])))
        terminal.console().print(table)
    if any(result["outcome"] == "failed" for result in results.values()):
        raise typer.Exit(1)
