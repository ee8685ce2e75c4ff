"""The command ``perennial quarantine``: the rows of a partition that did not pass the checks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from perennial.cli import terminal
from perennial.core import html
from perennial.core.errors import PerennialError
from perennial.spec import catalog
from perennial.status import quarantine_rows

__all__ = ["show"]

#: Characters of a cell that are printed.
_MAX_CELL = 40


def show(model: str, day: str | None, *, limit: int, out: Path | None, as_json: bool) -> None:
    """Print rows in quarantine, or write them to a file.

    Args:
        model: name of the model.
        day: the partition; the latest with rows in quarantine when None.
        limit: rows at most that are printed.
        out: CSV file that gets all rows; None to print.
        as_json: print JSON.

    Raises:
        PerennialError: there is no such model or partition, or the file cannot be written.
    """
    spec = catalog.load_model_by_name(model)
    console = terminal.console()
    if day is None:
        days = quarantine_rows.partitions(spec)
        if not days:
            console.print("[]" if as_json else f"{model} has nothing in quarantine.")
            return
        day = days[-1]
    content = quarantine_rows.read(spec, day, quarantine_rows.MAX_ROWS if out else limit)
    if out is not None:
        try:
            out.write_text("".join(quarantine_rows.to_csv(content)), "utf-8")
        except OSError as error:
            raise PerennialError(
                f"{out} cannot be written: {error.strerror}", "choose another file"
            ) from None
        console.print(Text(f"{len(content.rows):,} rows written to {out}"))
    elif as_json:
        print(json.dumps(asdict(content)))  # noqa: T201
    elif not content.rows:
        console.print(f"{model} has nothing in quarantine for {day}.")
    else:
        table = terminal.table("reasons", "feed", *content.columns)
        for row in content.rows:
            cells = ({**row.key, **row.values}.get(column, "") for column in content.columns)
            shown = (html.printable(cell, _MAX_CELL) for cell in cells)
            table.add_row(Text("\n".join(row.reasons)), row.feed, *map(Text, shown))
        console.print(table)
        console.print(f"{len(content.rows):,} of {content.total:,} rows of {day} in quarantine.")
