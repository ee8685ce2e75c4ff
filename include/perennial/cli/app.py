"""The command line: check and scaffold models, run any step by hand, read the ledger.

Every place runs steps through `run`: a worker, a laptop, a pod. Heavy libraries are imported by the step that needs
them, so that help and errors come at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from perennial.cli import incidents, terminal
from perennial.core.errors import PerennialError

app = typer.Typer(
    name="perennial",
    help="Keeps tabular models fresh.",
    no_args_is_help=True,
    add_completion=False,
    # a traceback with local variables would show rows, and rows may hold personal data
    pretty_exceptions_enable=False,
)
app.add_typer(incidents.app)
Library = Annotated[
    str | None, typer.Option(help="Digest that this library must have (`perennial library`).")
]
Model = Annotated[str | None, typer.Option("--model", "-m", help="The model's name.")]


def main() -> None:
    """Run the command line; an error that a person can act upon is told in words and ends with 1."""
    try:
        app()
    except PerennialError as error:
        _complain(str(error))


def _complain(message: str) -> NoReturn:
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        Text.assemble(("error: ", "bold red"), message)
    )
    raise SystemExit(1)


@app.command()
def check(
    names: Annotated[
        list[str] | None, typer.Argument(help="Models to check; all when none is named.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Count what could not be checked as a problem.")] = False,
) -> None:
    """Check models and feature sets: specs, SQL, suites, labels. Ends with 1 if there is a problem."""
    from perennial.cli.check import preflight

    reports = preflight.check(names or [])
    console, table = terminal.console(), Table(box=None, pad_edge=False)
    for title in ("folder", "kind", "features", "expectations", "SQL tried on", "result"):
        table.add_column(title, justify="right" if title in ("features", "expectations") else "left")
    for report in reports:
        bad = len(report.problems)
        outcome = Text(f"{bad} problem{'s' * (bad > 1)}", "red") if bad else Text("good", "green")
        table.add_row(
            Text(report.name),
            report.kind,
            *(str(n or "") for n in (report.features, report.expectations)),
            report.tried,
            outcome,
        )
    console.print(table)
    for report in reports:
        for problem in report.problems:
            console.print(Text.assemble(("problem  ", "red"), problem))
        for note in report.notes:
            console.print(
                Text.assemble(("not checked  " if strict else "note  ", "yellow"), f"{report.name}: {note}")
            )
    if not reports:
        console.print("There are no models: `perennial new` makes one.")
    if any(r.problems or (strict and r.notes) for r in reports):
        raise typer.Exit(1)


@app.command()
def why(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    day: Annotated[str, typer.Argument(metavar="DATE", help="Partition date, YYYY-MM-DD.")],
) -> None:
    """Why a model was retrained as of a date, or why not."""
    from perennial.lifecycle.explanation import explain_decision as explain
    from perennial.spec import catalog

    for line in explain(catalog.load_model_by_name(model), day):
        terminal.console().print(Text(line))


@app.command()
def run(
    step: Annotated[
        str, typer.Argument(help="data, train, promote, score, monitor, decide, conclude or rollback.")
    ],
    model: Model = None,
    start: Annotated[str | None, typer.Option(help="First partition date, YYYY-MM-DD (data, score).")] = None,
    end: Annotated[str | None, typer.Option(help="Last partition date; start when not given.")] = None,
    as_of: Annotated[str | None, typer.Option(help="Partition date up to which data counts.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Do it again even if it is done.")] = False,
    reason: Annotated[str | None, typer.Option(help="Why; kept in the ledger.")] = None,
    actor: Annotated[
        str | None, typer.Option(help="Who decides; the user of this machine when not given.")
    ] = None,
    to_version: Annotated[str | None, typer.Option(help="Version to go back to (rollback).")] = None,
    backfill: Annotated[
        bool, typer.Option("--backfill", help="Part of a backfill: starts no retraining.")
    ] = False,
    catch_up: Annotated[
        bool,
        typer.Option("--catch-up", help="Also nights before that were published and not scored (score)."),
    ] = False,
    run_id: Annotated[str | None, typer.Option(help="What is kept beside what the step writes.")] = None,
    spec_file: Annotated[
        str | None,
        typer.Option(help="The model as JSON (ModelSpec.bundle), instead of a folder; - for stdin."),
    ] = None,
    result_file: Annotated[
        str | None, typer.Option(help="Where the result, or the error, is written too: a path or s3:// URI.")
    ] = None,
    library: Library = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that fit the model together (train).")
    ] = None,
    meeting: Annotated[
        str | None,
        typer.Option(help="Where workers in other places find this one (train): a path or s3:// URI."),
    ] = None,
) -> None:
    """Run one step. Its result is the last line, as JSON."""
    from perennial.cli import invocation
    from perennial.steps import dispatch
    from perennial.steps import result_file as result_file_module

    with result_file_module.step_outcome(result_file) as kept:
        result_file_module.check_library_digest(library)
        spec = invocation.resolve_spec(model, spec_file)
        given = {
            "start": start,
            "end": end,
            "as_of": as_of,
            "reason": reason,
            "actor": actor,
            "to_version": to_version,
            "run_id": run_id,
            "workers": workers,
            "meeting": meeting,
            "force": force or None,
            "backfill": backfill or None,
            "catch_up": catch_up or None,
        }
        kept.result = dispatch.run(step, spec, **invocation.resolve_arguments(step, spec, given))
    sys.stdout.flush()
    print(json.dumps(kept.result, default=str), flush=True)  # noqa: T201


@app.command()
def work(
    meeting: Annotated[str, typer.Option(help="Where the trainer says where it is: a path or s3:// URI.")],
    rank: Annotated[int, typer.Option(help="Which of its workers this is, from 0.")],
    library: Library = None,
) -> None:
    """Fit a model together with others, for a trainer that runs elsewhere; end when it has done."""
    from perennial.steps import result_file
    from perennial.training import dask_cluster

    result_file.check_library_digest(library)
    dask_cluster.run_worker(meeting, rank)


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """List the models."""
    from perennial.spec import catalog, yaml_reader

    found, errors = catalog.load_models()
    if as_json:
        rows = [
            {
                "name": s.name,
                "task": s.task,
                "owner": s.owner,
                "description": s.description,
                "folder": str(s.folder),
                "digest": s.digest,
            }
            for s in found.values()
        ]
        print(json.dumps(rows))  # noqa: T201
    else:
        table = Table(box=None, pad_edge=False)
        for title in ("model", "task", "owner", "source", "from", "folder"):
            table.add_column(title, overflow="fold")
        for spec in found.values():
            table.add_row(
                *map(
                    Text,
                    (
                        spec.name,
                        spec.task,
                        spec.owner,
                        spec.data.source,
                        spec.schedule.start.isoformat(),
                        yaml_reader.show(spec.folder),
                    ),
                )
            )
        terminal.console().print(table)
    if errors:
        _complain("\n".join(str(error) for error in errors))


@app.command()
def ledger(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, evidence included.")] = False,
) -> None:
    """Show what was decided about a model, by whom and why, and verify the chain of records."""
    from perennial.storage import ledger as book

    rows = book.records(model)
    if as_json:
        print(json.dumps(rows, default=str))  # noqa: T201
    else:
        table = Table(box=None, pad_edge=False)
        for title in ("#", "recorded (UTC)", "partition", "kind", "decision", "version", "actor", "reason"):
            table.add_column(title, justify="right" if title == "#" else "left", overflow="fold")
        for row in rows:
            shown = (
                row["sequence"],
                row["recorded_at"],
                row["partition"],
                row["kind"],
                row["decision"],
                row["model_version"],
                row["actor"],
                row["reason"],
            )
            table.add_row(*(Text(str(value)) for value in shown))
        terminal.console().print(table)
    count = book.verify(model)
    if not as_json:
        terminal.console().print(
            f"{count} records; the chain is whole." if count else f"Nothing was decided about {model} yet."
        )


@app.command()
def library() -> None:
    """Print the digest of this library: an image must have the one that its caller has."""
    from perennial.core import runtime

    print(runtime.library_digest())  # noqa: T201


@app.command()
def schema() -> None:
    """Print the JSON Schema of model.yaml."""
    from perennial.cli import spec_reference

    print(spec_reference.schema(), end="")  # noqa: T201


@app.command()
def docs(
    only_check: Annotated[
        bool, typer.Option("--check", help="Write nothing; end with 1 if one is stale.")
    ] = False,
) -> None:
    """Write the files that are made from the spec's definition: the JSON Schema, and the table of all keys."""
    from perennial.cli import spec_reference

    stale = spec_reference.write(dry_run=only_check)
    for path in stale:
        terminal.console().print(f"{'stale' if only_check else 'written'}: {path}")
    if only_check and stale:
        _complain("generated files are stale\n  What to do: run `make docs` and commit what it writes")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The model's name: lower case, digits, _.")],
    sample: Annotated[
        list[Path] | None,
        typer.Option("--sample", "-s", help="Sample file, parquet or CSV; once a partition."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="binary, multiclass, regression or ranking.")] = None,
    label: Annotated[str | None, typer.Option(help="The column to predict.")] = None,
    positive: Annotated[
        str | None, typer.Option(help="Binary: the label's value that counts as yes.")
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option("--key", help="Column that names a row; may be repeated.")
    ] = None,
    event_time: Annotated[str | None, typer.Option(help="Column that says when a row happened.")] = None,
    group: Annotated[str | None, typer.Option(help="Ranking: the column that names a row's list.")] = None,
    owner: Annotated[str | None, typer.Option(help="Who answers for the model.")] = None,
    description: Annotated[str | None, typer.Option(help="What it predicts.")] = None,
    personal: Annotated[
        list[str] | None, typer.Option("--personal", help="Column of personal data; may be repeated.")
    ] = None,
    into: Annotated[
        Path | None, typer.Option(help="Folder to make it in; the first of PERENNIAL_MODELS.")
    ] = None,
    land: Annotated[bool | None, typer.Option(help="Copy the sample into the landing area.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; take every suggestion.")] = False,
) -> None:
    """Make a model's folder from a sample: spec, features, suite, README, ready to check and to run."""
    from perennial.cli.new import wizard

    asked = wizard.GivenAnswers(
        task=task,
        label=label,
        positive=positive,
        key=key or [],
        event_time=event_time,
        group=group,
        owner=owner,
        description=description,
        personal=personal,
        land=land,
    )
    made = wizard.create_model_folder(name, sample or [], asked, into, ask=not yes)
    console = terminal.console()
    console.print(f"Made {made.folder}")
    for line in made.remarks:
        console.print(Text(f"  {line}"))
    console.print(f"Next: perennial check {name}")
    console.print(f"      perennial run data --model {name} --start {made.first} --end {made.last}")


@app.command()
def doctor(
    profile: Annotated[
        list[str] | None,
        typer.Option("--profile", help="Compute profile to check beside those in use; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Say what is missing outside: buckets, MLflow, cluster, rights. Ends with 1 if something is."""
    from dataclasses import asdict

    from perennial.cli.doctor import doctor as its

    found = its.examine(profile or [])
    if as_json:
        print(json.dumps([asdict(f) for f in found]))  # noqa: T201
    else:
        colours = {"ok": "green", "warning": "yellow", "missing": "red"}
        table = Table(box=None, pad_edge=False)
        for title in ("checked", "state", "found"):
            table.add_column(title, overflow="fold")
        for item in found:
            table.add_row(Text(item.what), Text(item.state, colours[item.state]), Text(item.detail))
            if item.remedy:
                table.add_row("", "", Text(f"What to do: {item.remedy}", "bold"))
        terminal.console().print(table)
    if any(f.state == "missing" for f in found):
        raise typer.Exit(1)
