"""The commands ``perennial ledger``: show the decisions about a model, ask about them, verify and export them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from perennial.cli import terminal
from perennial.core.errors import PerennialError
from perennial.governance import ledger_export
from perennial.governance.ledger_export import ExportFormat
from perennial.spec import catalog
from perennial.storage import ledger
from perennial.storage.ledger import LedgerKind, LedgerRecord

__all__ = ["app"]

_DEFAULT = "show"
#: Columns of a printed record: their headings and keys.
_COLUMNS = {
    "#": "sequence", "recorded (UTC)": "recorded_at", "partition": "partition", "kind": "kind",
    "decision": "decision", "version": "model_version", "actor": "actor", "reason": "reason",
}  # fmt: skip


class _ShowByDefault(TyperGroup):
    """A group of commands: ``perennial ledger MODEL`` is ``perennial ledger show MODEL``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ShowByDefault,
    help="The decisions about a model: `perennial ledger MODEL` shows them.",
    no_args_is_help=True,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, evidence included.")]
ModelName = Annotated[str, typer.Argument(help="Name of the model.")]


@app.command()
def show(model: ModelName, as_json: AsJson = False) -> None:
    """Show the decisions about a model, by whom and why, and verify the chain of records."""
    rows = ledger.records(model)
    if as_json:
        print(json.dumps(rows, default=str))  # noqa: T201
    else:
        _print_records(rows)
    count = ledger.verify(model)
    if not as_json:
        terminal.console().print(
            f"{count} records; the chain of hashes is intact."
            if count
            else f"No decision about {model} is recorded."
        )


@app.command()
def champion(
    model: ModelName,
    on: Annotated[
        str,
        typer.Option(help="Day (its end), YYYY-MM-DD, or moment, YYYY-MM-DDThh:mm, in UTC; default: today."),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Say which version was champion on a day, who or what made it that, and why."""
    from perennial.governance import champion_history

    answer = champion_history.champion_at(model, on)
    if as_json:
        print(json.dumps(asdict(answer)))  # noqa: T201
        return
    console = terminal.console()
    if answer.change is None:
        console.print(Text(f"{model} had no champion before {answer.until}."))
        return
    change = answer.change
    evidence = change["evidence"]
    _print_facts(
        {
            "champion": f"version {answer.version}",
            "since": change["recorded_at"],
            "by": f"{change['actor']} ({change['kind']})",
            "reason": change["reason"],
            "replaced": f"version {evidence['previous']}" if evidence.get("previous") else "",
            "approved by": evidence.get("approved_by", ""),
            "record": f"{change['sequence']}, hash {change['hash']}",
        }
    )
    if len(answer.same_day) > 1:
        console.print(f"The champion changed {len(answer.same_day)} times on that day:")
        _print_records(answer.same_day)


@app.command()
def prediction(
    model: ModelName,
    partition: Annotated[str, typer.Argument(help="Partition of the row.")],
    key: Annotated[
        list[str], typer.Argument(help="Key of the row: its value, or column=value for each column.")
    ],
    as_json: AsJson = False,
) -> None:
    """Say which model, data, code, features and approval made a prediction. `perennial explain` says why."""
    from perennial.governance import prediction_explanation, prediction_origin

    spec = catalog.load_model_by_name(model)
    parsed = prediction_explanation.parse_key(spec, key)
    origin = prediction_origin.find_origin(spec, partition, parsed)
    if as_json:
        print(json.dumps(asdict(origin), default=str))  # noqa: T201
        return
    request = origin.training["evidence"].get("request") or {}
    tables = ", ".join(f"{name} {version}" for name, version in origin.tables_at_scoring.items())
    _print_facts(
        {
            "row": ", ".join(f"{column} {value}" for column, value in origin.key.items()),
            "prediction": f"{origin.prediction:.6g}"
            if isinstance(origin.prediction, float)
            else origin.prediction,
            "scored": f"{origin.scored_at}{origin.scored_by and f' by {origin.scored_by}'}",
            "model": f"version {origin.version}, {origin.role}, file {origin.model_digest}",
            "trained": f"as of {origin.trained_as_of}, on {origin.trained_on}",
            "data": f"{origin.data}; scored files {origin.rows_digest}",
            "features": f"spec {origin.spec_digest}{tables and f'; tables {tables}'}",
            "code": f"training {origin.training_code or 'unknown'}, scoring {origin.scoring_code or 'unknown'}",
            "recipe": origin.recipe_digest and f"{origin.recipe_digest}: perennial reproduce {model} {origin.version}",
            "requested": ", ".join(filter(None, (request.get("actor"), request.get("reason")))),
            "gate": _decision(origin.training),
            "approval": _decision(origin.approval) or "none was asked for",
            "promotion": _decision(origin.promotion),
        }
    )  # fmt: skip


@app.command()
def verify(
    model: Annotated[str | None, typer.Argument(help="Name of the model; all models by default.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="Verify this JSON export instead; needs no lake.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Verify the chain of records and its anchors. Exit status 1 if any was edited, removed, added or moved."""
    from perennial.lifecycle import ledger_anchors

    if file:
        name, count, digest = ledger_export.verify_file(file)
        if model and model != name:
            raise PerennialError(f"{file} is the ledger of {name}, not of {model}", "name the right file")
        print(  # noqa: T201
            json.dumps({"model": name, "records": count, "hash": digest})
            if as_json
            else f"{count} records of {name}; the chain of hashes is intact. The last hash is {digest}."
        )
        return
    # a model whose folder is broken, or was removed, has a ledger all the same; or had one, as anchors show
    names = (
        [model] if model else sorted({*catalog.find_folders(), *ledger.models(), *ledger_anchors.models()})
    )
    results = {name: verify_ledger(name) for name in names}
    if model and not any(results[model].values()):
        results[model]["findings"].append("its ledger has no records: check the name, and PERENNIAL_LAKE")
    findings = [(name, finding) for name, result in results.items() for finding in result["findings"]]
    if as_json:
        print(json.dumps(results))  # noqa: T201
    else:
        table = terminal.table("model", "records", "result", right=("records",))
        for name, result in results.items():
            bad = bool(result["findings"])
            table.add_row(
                Text(name), str(result["records"]), Text("bad" if bad else "good", "red" if bad else "green")
            )
        terminal.console().print(table)
        for name, finding in findings:
            terminal.console().print(Text.assemble(("finding  ", "red"), f"{name}: {finding}"))
    if findings:
        raise typer.Exit(1)  # fmt: skip


def verify_ledger(model: str) -> dict[str, Any]:
    """Verify one ledger, and compare it with its anchors; writes nothing.

    Args:
        model: name of the model.

    Returns:
        How many records there are, the hash of the last one (empty without any), and the findings.
    """
    from perennial.lifecycle import ledger_anchors

    count, digest, findings = 0, "", []
    try:
        count = ledger.verify(model)
        # that of the last record that was verified: another one may be there by then
        digest = ledger.hashes(model, [count]).get(count, "") if count else ""
        findings = ledger_anchors.contradictions(model)
    except PerennialError as error:
        findings.append(f"{error.cause}: {error.remedy}")
    return {"records": count, "hash": digest, "findings": findings}


@app.command()
def export(
    model: ModelName,
    form: Annotated[
        ExportFormat, typer.Option("--format", help="csv, json (can be verified), or html (a page to read).")
    ] = ExportFormat.JSON,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; default: print.")] = None,
    kind: Annotated[LedgerKind | None, typer.Option(help="Only records of this kind.")] = None,
    since: Annotated[str, typer.Option(help="Only records of this day (UTC) and later, YYYY-MM-DD.")] = "",
    until: Annotated[str, typer.Option(help="Only records of this day (UTC) and earlier, YYYY-MM-DD.")] = "",
) -> None:
    """Write the records to a file for an auditor. Only a JSON export of all records can be verified."""
    from perennial.core import dates
    from perennial.storage import leftovers

    end = dates.add_days(until, 1) if until else "~"
    begin = dates.add_days(since, 0) if since else ""
    count = 0

    def selected() -> Iterable[LedgerRecord]:
        nonlocal count
        for record in ledger.iterate(model):
            if begin <= record["recorded_at"] < end and kind in (None, record["kind"]):
                count += 1
                yield record

    lines = ledger_export.FORMATS[form](model, selected())
    if out is None:
        sys.stdout.writelines(lines)
        return
    try:
        temporary = leftovers.temporary_file(out.resolve())
        try:
            with temporary.open("w", encoding="utf-8", newline="") as stream:
                stream.writelines(lines)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise PerennialError(
            f"{out} cannot be written: {error.strerror}", "name another file with --out", model=model
        ) from None
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"{out}: {count:,} records of {model}"))


def _print_records(rows: Iterable[LedgerRecord]) -> None:
    table = terminal.table(*_COLUMNS, right=("#",))
    for row in rows:
        values = dict(row)
        table.add_row(*(Text(str(values[key])) for key in _COLUMNS.values()))
    terminal.console().print(table)


def _print_facts(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        if value:
            terminal.console().print(Text.assemble((f"{name:<12}", "bold"), str(value)))


def _decision(record: LedgerRecord | None) -> str:
    """A decision in a line; empty without one."""
    if record is None:
        return ""
    return f"{record['decision']} {record['recorded_at']} by {record['actor']}: {record['reason']}"
