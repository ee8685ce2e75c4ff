"""The command line: check and create models, run single steps, read the ledger.

A person, an Airflow worker and a pod all run steps through `run`. Each command imports heavy libraries only when it
needs them, so that help and errors appear quickly.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from perennial.cli import terminal
from perennial.core.errors import PerennialError

__all__ = ["app", "main"]

app = typer.Typer(
    name="perennial",
    help="Keeps tabular machine-learning models fresh.",
    no_args_is_help=True,
    add_completion=False,
    # a traceback with local variables would show rows, and rows may hold personal data
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LibraryDigest = Annotated[
    str | None,
    typer.Option(help="Refuse to run unless the library has this digest (`perennial library-digest`)."),
]
ModelName = Annotated[str, typer.Argument(help="Name of the model.")]
RENDEZVOUS_HELP = "path or s3:// URI of the file in which trainer and workers find each other"


def main() -> None:
    """Run the command line; a `PerennialError` is printed without a traceback, and the exit status is 1."""
    try:
        app()
    except PerennialError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        Text.assemble(("error: ", "bold red"), message)
    )
    raise SystemExit(1)


@app.command()
def check(
    names: Annotated[list[str] | None, typer.Argument(help="Models to check; all by default.")] = None,
    strict: Annotated[bool, typer.Option(help="Treat what could not be checked as a problem.")] = False,
) -> None:
    """Check models and feature sets: specs, SQL, suites, labels. Exit status 1 if there are problems."""
    from perennial.cli.check import preflight

    reports = preflight.check(names or [])
    console = terminal.console()
    table = terminal.table(
        "folder", "kind", "features", "expectations", "SQL tried on", "result",
        right=("features", "expectations"),
    )  # fmt: skip
    for report in reports:
        bad = len(report.problems)
        outcome = Text(f"{bad} problem{'s' * (bad > 1)}", "red") if bad else Text("good", "green")
        counts = (str(n or "") for n in (report.features, report.expectations))
        table.add_row(Text(report.name), report.kind, *counts, report.tried, outcome)
    console.print(table)
    for report in reports:
        for problem in report.problems:
            console.print(Text.assemble(("problem  ", "red"), problem))
        for note in report.notes:
            title = "not checked  " if strict else "note  "
            console.print(Text.assemble((title, "yellow"), f"{report.name}: {note}"))
    if not reports:
        console.print("There are no models; create one with `perennial new`.")
    if any(r.problems or (strict and r.notes) for r in reports):
        raise typer.Exit(1)


@app.command()
def why(
    model: ModelName,
    day: Annotated[str, typer.Argument(metavar="DATE", help="Partition date, YYYY-MM-DD.")],
) -> None:
    """Explain why a model was, or was not, retrained as of a date."""
    from perennial.lifecycle.explanation import explain_decision as explain
    from perennial.spec import catalog

    for line in explain(catalog.load_model_by_name(model), day):
        terminal.console().print(Text(line))


@app.command()
def run(
    step: Annotated[
        str, typer.Argument(help="data, train, promote, score, monitor, decide, conclude or rollback.")
    ],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Name of the model.")] = None,
    start: Annotated[str | None, typer.Option(help="data, score: first partition date, YYYY-MM-DD.")] = None,
    end: Annotated[str | None, typer.Option(help="Last partition date; default: --start.")] = None,
    as_of: Annotated[str | None, typer.Option(help="Partition date of the latest data to use.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Repeat finished work.")] = False,
    reason: Annotated[str | None, typer.Option(help="Reason, recorded in the ledger.")] = None,
    actor: Annotated[str | None, typer.Option(help="Who decides; default: the user.")] = None,
    to_version: Annotated[str | None, typer.Option(help="rollback: version to return to.")] = None,
    backfill: Annotated[
        bool, typer.Option("--backfill", help="Part of a backfill: starts no retraining.")
    ] = False,
    catch_up: Annotated[
        bool,
        typer.Option("--catch-up", help="score: also score earlier partitions that have not been scored."),
    ] = False,
    run_id: Annotated[str | None, typer.Option(help="Identifier recorded with what the step writes.")] = None,
    spec_file: Annotated[
        str | None,
        typer.Option(help="The model as JSON (ModelSpec.bundle) instead of a folder; -: standard input."),
    ] = None,
    result_file: Annotated[
        str | None, typer.Option(help="File to write the result or the error to: a path or s3:// URI.")
    ] = None,
    library_digest: LibraryDigest = None,
    workers: Annotated[int | None, typer.Option(help="train: processes that fit the model together.")] = None,
    rendezvous: Annotated[str | None, typer.Option(help=f"train: {RENDEZVOUS_HELP}.")] = None,
) -> None:
    """Run one step. Its result is printed last, as one line of JSON."""
    from perennial.cli import invocation
    from perennial.steps import dispatch
    from perennial.steps import result_file as result_file_module

    options = {
        "start": start, "end": end, "as_of": as_of, "reason": reason, "actor": actor, "to_version": to_version,
        "run_id": run_id, "workers": workers, "rendezvous": rendezvous, "force": force or None,
        "backfill": backfill or None, "catch_up": catch_up or None,
    }  # fmt: skip
    with result_file_module.step_outcome(result_file) as outcome:
        result_file_module.check_library_digest(library_digest)
        spec = invocation.resolve_spec(model, spec_file)
        outcome.result = dispatch.run(step, spec, **invocation.resolve_arguments(step, options))
    sys.stdout.flush()
    print(json.dumps(outcome.result, default=str), flush=True)  # noqa: T201


@app.command()
def worker(
    rendezvous: Annotated[str, typer.Option(help=f"{RENDEZVOUS_HELP[0].upper()}{RENDEZVOUS_HELP[1:]}.")],
    rank: Annotated[int, typer.Option(help="Number of this worker, from 0.")],
    library_digest: LibraryDigest = None,
) -> None:
    """Fit a model together with the other workers of a trainer that runs elsewhere; ends when it is fitted."""
    from perennial.steps import result_file
    from perennial.training import dask_cluster

    result_file.check_library_digest(library_digest)
    dask_cluster.run_worker(rendezvous, rank)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models."""
    from perennial.spec import catalog, yaml_reader

    specs, errors = catalog.load_models()
    if as_json:
        keys = ("name", "task", "owner", "description", "folder", "digest")
        rows = [{key: getattr(spec, key) for key in keys} for spec in specs.values()]
        print(json.dumps(rows, default=str))  # noqa: T201
    else:
        table = terminal.table("model", "task", "owner", "source", "from", "folder")
        for spec in specs.values():
            folder, start = yaml_reader.display_path(spec.folder), spec.schedule.start.isoformat()
            row = (spec.name, spec.task, spec.owner, spec.data.source, start, folder)
            table.add_row(*map(Text, row))
        terminal.console().print(table)
    if errors:
        _fail("\n".join(str(error) for error in errors))


@app.command()
def ledger(
    model: ModelName,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, evidence included.")] = False,
) -> None:
    """Show the decisions about a model, by whom and why, and verify the chain of records."""
    from perennial.storage import ledger as ledger_module

    rows = ledger_module.records(model)
    if as_json:
        print(json.dumps(rows, default=str))  # noqa: T201
    else:
        columns = {
            "#": "sequence", "recorded (UTC)": "recorded_at", "partition": "partition", "kind": "kind",
            "decision": "decision", "version": "model_version", "actor": "actor", "reason": "reason",
        }  # fmt: skip
        table = terminal.table(*columns, right=("#",))
        for row in rows:
            values = dict(row)
            table.add_row(*(Text(str(values[key])) for key in columns.values()))
        terminal.console().print(table)
    count = ledger_module.verify(model)
    if not as_json:
        terminal.console().print(
            f"{count} records; the chain of hashes is intact."
            if count
            else f"No decision about {model} is recorded."
        )


@app.command()
def incidents(
    model: Annotated[str | None, typer.Argument(help="Name of the model; all models by default.")] = None,
    closed: Annotated[
        bool, typer.Option("--all", help="Also the last closed incident of each signal.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List open incidents, muted signals and notices that could not be delivered."""
    from perennial.cli import incidents as incidents_module

    incidents_module.show(model, closed=closed, as_json=as_json)


@app.command()
def mute(
    model: ModelName,
    signal: Annotated[str, typer.Argument(help="Signal, or a pattern such as 'failure:*'.")] = "*",
    until: Annotated[
        str, typer.Option(help="Last partition date that is muted, YYYY-MM-DD; a past date ends a mute.")
    ] = "",
    reason: Annotated[str, typer.Option(help="Reason, recorded in the ledger.")] = "",
) -> None:
    """Send no alerts of a signal for a while. It is still recorded, and listed in the daily summary."""
    from perennial.cli import incidents as incidents_module

    incidents_module.mute(model, signal, until, reason)


@app.command()
def library_digest() -> None:
    """Print the digest of this library: a trainer image must have the digest of its caller."""
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
        bool, typer.Option("--check", help="Write nothing; exit status 1 if a file is stale.")
    ] = False,
) -> None:
    """Write the files generated from the spec's definition: JSON Schemas, and the reference of all keys."""
    from perennial.cli import spec_reference

    stale = spec_reference.write(dry_run=only_check)
    for path in stale:
        terminal.console().print(f"{'stale' if only_check else 'written'}: {path}")
    if only_check and stale:
        _fail("generated files are stale\n  What to do: run `make docs` and commit the changes")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the model: lower case letters, digits, _.")],
    sample: Annotated[
        list[Path] | None,
        typer.Option("--sample", "-s", help="Sample file, parquet or CSV; repeat for several partitions."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="binary, multiclass, regression or ranking.")] = None,
    label: Annotated[str | None, typer.Option(help="Column to predict.")] = None,
    positive: Annotated[str | None, typer.Option(help="Binary: value of the positive class.")] = None,
    key: Annotated[
        list[str] | None, typer.Option("--key", help="Column that identifies a row; may be repeated.")
    ] = None,
    event_time: Annotated[str | None, typer.Option(help="Column with the time of the event.")] = None,
    group: Annotated[str | None, typer.Option(help="Ranking: column that identifies a row's list.")] = None,
    owner: Annotated[str | None, typer.Option(help="Who is responsible for the model.")] = None,
    description: Annotated[str | None, typer.Option(help="What it predicts.")] = None,
    personal: Annotated[
        list[str] | None, typer.Option("--personal", help="Column of personal data; may be repeated.")
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            help="Folder to create it in; default: the first of PERENNIAL_MODELS, or include/models."
        ),
    ] = None,
    land: Annotated[bool | None, typer.Option(help="Copy the sample into the landing area.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask no questions; accept every suggestion.")
    ] = False,
) -> None:
    """Create a model's folder from a sample: spec, features, suite and README, ready to check and to run."""
    from perennial.cli.new import wizard

    answers = wizard.GivenAnswers(
        task=task, label=label, positive=positive, key=key or [], event_time=event_time, group=group,
        owner=owner, description=description, personal=personal, land=land,
    )  # fmt: skip
    created = wizard.create_model_folder(name, sample or [], answers, into, ask=not yes)
    console = terminal.console()
    console.print(f"Created {created.folder}")
    for line in created.remarks:
        console.print(Text(f"  {line}"))
    console.print(f"Next: perennial check {name}")
    console.print(f"      perennial run data --model {name} --start {created.first} --end {created.last}")


@app.command()
def doctor(
    profile: Annotated[
        list[str] | None,
        typer.Option(
            "--profile", help="Compute profile to check in addition to those in use; may be repeated."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the environment: buckets, MLflow, cluster, permissions. Exit status 1 if something is missing."""
    from perennial.cli.doctor import environment

    findings = environment.examine(profile or [])
    if as_json:
        print(json.dumps([asdict(f) for f in findings]))  # noqa: T201
    else:
        colours = {"ok": "green", "warning": "yellow", "missing": "red"}
        table = terminal.table("check", "state", "result")
        for item in findings:
            table.add_row(Text(item.what), Text(item.state, colours[item.state]), Text(item.detail))
            if item.remedy:
                table.add_row("", "", Text(f"What to do: {item.remedy}", "bold"))
        terminal.console().print(table)
    if any(f.state == "missing" for f in findings):
        raise typer.Exit(1)
