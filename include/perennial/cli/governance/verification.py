"""The command ``perennial verify``: compare what is stored of models with the recorded digests."""

from __future__ import annotations

import json

from rich.console import Console
from rich.text import Text

from perennial.cli import terminal
from perennial.lifecycle import verification
from perennial.spec import catalog


def verify(model: str | None, *, record: bool, as_json: bool) -> bool:
    """Verify one model, or all, and print what was found.

    Args:
        model: name of the model; all models if None.
        record: record the digests of data files that have none.
        as_json: print JSON.

    Returns:
        Whether every model could be verified, and everything is what was written.
    """
    specs, errors = ({model: catalog.load_model_by_name(model)}, []) if model else catalog.load_models()
    results = {
        name: verification.verify_model(spec, actor=terminal.user(), record=record)
        for name, spec in specs.items()
    }
    for error in errors:
        Console(stderr=True, highlight=False).print(Text(f"not verified: {error}", "red"))
    intact = not errors and not any(result["findings"] for result in results.values())
    if as_json:
        print(json.dumps(results))  # noqa: T201
        return intact
    console = terminal.console()
    table = terminal.table("model", "ledger records", "manifests", "data files", "digests recorded", "result")
    for name, result in results.items():
        count = len(result["findings"])
        outcome = Text(f"{count} finding{'s' * (count > 1)}", "red") if count else Text("good", "green")
        numbers = (str(result[key]) for key in ("records", "manifests", "files", "recorded"))
        table.add_row(Text(name), *numbers, outcome)
    console.print(table)
    for name, result in results.items():
        for finding in result["findings"]:
            console.print(Text.assemble(("finding  ", "red"), f"{name}: {finding}"))
    return intact
