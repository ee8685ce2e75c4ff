"""The command line: check and create models, run single steps, read the ledger.

A person, an Airflow worker and a pod all run steps through `run` (`_step_commands`). Each command imports heavy
libraries only when it needs them, so that help and errors appear quickly.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from perennial.cli import _governance_commands, _new_command, _step_commands, terminal
from perennial.cli._step_commands import LIBRARY_DIGEST_HELP, RENDEZVOUS_HELP
from perennial.cli.governance import card, drills, ledger_commands
from perennial.core import unexpected_errors
from perennial.core.errors import FAILED, exit_status

__all__ = ["app", "main"]

app = typer.Typer(
    name="perennial",
    help="Keeps tabular machine-learning models fresh.",
    no_args_is_help=True,
    add_completion=False,
    # a traceback with local variables would show rows, and rows may hold personal data
    pretty_exceptions_enable=False,
)
run = typer.Typer(help="Run one step.", no_args_is_help=True)
_step_commands.add_commands(run)
app.add_typer(run, name="run")
features = typer.Typer(help="Feature tables: features of an entity's history.", no_args_is_help=True)
app.add_typer(features, name="features")
app.add_typer(ledger_commands.app, name="ledger")
app.command()(drills.rollback_drill)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LibraryDigest = Annotated[str | None, typer.Option(help=LIBRARY_DIGEST_HELP)]
ModelName = Annotated[str, typer.Argument(help="Name of the model.")]
TableName = Annotated[str, typer.Argument(help="Name of the feature table.")]
ModelOrAll = Annotated[str | None, typer.Argument(help="Name of the model; all models by default.")]


def main() -> None:
    """Run the command line; an error is printed in words, without a traceback.

    The exit status is then 1, or 75 (EX_TEMPFAIL) if the same command can succeed later: `errors.exit_status`.
    """
    try:
        app()
    except BaseException as error:
        if not unexpected_errors.is_failure(error):
            raise
        failure = unexpected_errors.translate(error, "the command")
        _fail(str(failure), exit_status(failure))


def _fail(message: str, status: int = FAILED) -> NoReturn:
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        Text.assemble(("error: ", "bold red"), message)
    )
    raise SystemExit(status)


@app.command()
def check(
    names: Annotated[list[str] | None, typer.Argument(help="Models to check; all by default.")] = None,
    strict: Annotated[bool, typer.Option(help="Treat what could not be checked as a problem.")] = False,
) -> None:
    """Check models, feature sets and feature tables. Exit status 1 if there are problems."""
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
    day: Annotated[
        str,
        typer.Argument(
            metavar="DATE", help="Partition: YYYY-MM-DD, for hours YYYY-MM-DDThh, for months YYYY-MM."
        ),
    ],
) -> None:
    """Explain why a model was, or was not, retrained as of a date."""
    from perennial.lifecycle.explanation import explain_decision as explain
    from perennial.spec import catalog

    for line in explain(catalog.load_model_by_name(model), day):
        terminal.console().print(Text(line))


@app.command()
def status(
    model: ModelOrAll = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Write the status records anew, from the whole lake.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show how each model is: state, champion, verdict, scores, incidents. Exit status 1 if one is unwell."""
    from perennial.cli import status as status_module

    if status_module.show(model, rebuild=rebuild, as_json=as_json):
        raise typer.Exit(1)


@app.command()
def missing(
    model: ModelOrAll = None,
    until: Annotated[
        str | None,
        typer.Option(help="Last partition, or date, that is due; default: the last one that has ended."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what is due and not done, and the command that does it. Exit status 1 if there is anything."""
    from perennial.cli import missing as missing_module

    if missing_module.show(model, until, as_json=as_json):
        raise typer.Exit(1)


@app.command()
def quarantine(
    model: ModelName,
    day: Annotated[
        str | None, typer.Option("--date", help="Partition; default: the latest one with rows in quarantine.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows at most.")] = 20,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write all rows to this CSV file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the rows of a partition that did not pass the checks, with the reasons; personal data is hidden."""
    from perennial.cli import quarantine as quarantine_module

    quarantine_module.show(model, day, limit=limit, out=out, as_json=as_json)


@features.command("list")
def list_features(as_json: AsJson = False) -> None:
    """List the feature tables, the models that use them, and what is computed."""
    from perennial.cli import features as features_module

    features_module.show_all(as_json=as_json)


@features.command("show")
def show_features(table: TableName, as_json: AsJson = False) -> None:
    """Show a feature table: its columns, its sources, and what its newest partitions cost."""
    from perennial.cli import features as features_module

    features_module.show(table, as_json=as_json)


@features.command("check")
def check_features(
    table: Annotated[str | None, typer.Argument(help="Name of the table; all tables by default.")] = None,
) -> None:
    """Check feature tables: SQL, tests, no value from later rows. Exit status 1 if there are problems."""
    from perennial.cli import features as features_module

    features_module.check(table)


@features.command("build")
def build_features(
    table: TableName,
    start: Annotated[str, typer.Option(help="First partition, written as for `perennial run`.")],
    end: Annotated[str | None, typer.Option(help="Last partition; default: --start.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Compute again what is up to date.")] = False,
) -> None:
    """Compute partitions of a feature table that are missing or outdated; training and scoring do so by themselves."""
    from perennial.cli import features as features_module

    features_module.build(table, start, end, force=force)


@app.command()
def console(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 8900,
) -> None:
    """Show the models in the browser: the pages of Airflow's entry Models, read-only, for this machine only."""
    from perennial.cli import console as console_module

    console_module.serve(port)


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
            row = (spec.name, spec.task, spec.owner, str(spec.data.source), start, folder)
            table.add_row(*map(Text, row))
        terminal.console().print(table)
    if errors:
        _fail("\n".join(str(error) for error in errors))


@app.command()
def predictions(
    model: ModelName,
    day: Annotated[
        str | None, typer.Option("--date", help="Partition date, YYYY-MM-DD; default: the latest one.")
    ] = None,
    start: Annotated[str | None, typer.Option(help="First partition date of a range.")] = None,
    end: Annotated[str | None, typer.Option(help="Last partition date of a range.")] = None,
    limit: Annotated[int | None, typer.Option(help="Rows at most; default: 20, for a file all.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write to this file, .csv or .parquet, instead.")
    ] = None,
) -> None:
    """Print the predictions of scored partitions, or write them to a file: key, prediction, version."""
    from perennial.cli import predictions as predictions_module
    from perennial.spec import catalog

    spec = catalog.load_model_by_name(model)
    predictions_module.show(spec, day=day, start=start, end=end, limit=limit, out=out)


@app.command()
def explain(
    model: ModelName,
    partition: Annotated[str, typer.Argument(help="Partition of the row.")],
    key: Annotated[
        list[str], typer.Argument(help="Key of the row: its value, or column=value for each column.")
    ],
    threshold: Annotated[
        float,
        typer.Option(min=0, max=1, help="Binary models: probability from which the decision is positive."),
    ] = 0.5,
    top: Annotated[int, typer.Option(min=1, help="Features that are printed.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Explain one prediction: row, features, version, contributions, and what would change the decision."""
    from perennial.cli.governance import explain as explain_module

    explain_module.show(model, partition, key, threshold=threshold, top=top, as_json=as_json)


@app.command()
def reproduce(
    model: ModelName,
    version: Annotated[str, typer.Argument(help="Number of the version; default: the champion.")] = "",
    actor: Annotated[str, typer.Option(help="Who asks for it, for the ledger; default: the user.")] = "",
    as_json: AsJson = False,
) -> None:
    """Train a version again from its recipe, and compare it byte for byte. Exit status 1 if it is another model."""
    from perennial.governance import reproduction
    from perennial.spec import catalog

    spec = catalog.load_model_by_name(model)
    result = reproduction.reproduce(spec, version=version, actor=actor or terminal.user())
    if as_json:
        print(json.dumps(result))  # noqa: T201
    else:
        terminal.console().print(Text(reproduction.summarise(result)))
        for name, (then, again) in result["metrics"].items():
            terminal.console().print(Text(f"  {name}: {then:.6g} then, {again:.6g} now"))
        for difference in result["differences"]:
            terminal.console().print(Text(f"  {difference}"))
    if result["outcome"] == "different":
        raise typer.Exit(1)


@app.command()
def verify(
    model: ModelOrAll = None,
    record: Annotated[
        bool,
        typer.Option(
            "--record", help="Record the digest of data files that have none, as the files are now."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare data files, manifests, ledger and MLflow with the recorded digests. Exit status 1 if any differs."""
    from perennial.cli.governance import verification

    if not verification.verify(model, record=record, as_json=as_json):
        raise typer.Exit(1)


@app.command()
def sign(
    model: ModelName,
    version: Annotated[str, typer.Argument(help="Number of the version.")],
) -> None:
    """Sign a version that was registered without a key, after verifying the ledger and comparing the files with it."""
    from perennial.cli.governance import signing

    signing.sign(model, version)


@app.command()
def incidents(
    model: ModelOrAll = None,
    closed: Annotated[
        bool, typer.Option("--all", help="Also the last closed incident of each signal.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List open incidents, muted signals and notices that could not be delivered."""
    from perennial.cli import incidents as incidents_module

    incidents_module.show(model, closed=closed, as_json=as_json)


@app.command()
def resolve(
    model: ModelName,
    signal: Annotated[str, typer.Argument(help="Signal of the incident, such as failure:rollback.")],
    reason: Annotated[str, typer.Option(help="Why it is over; recorded in the ledger.")] = "",
) -> None:
    """Close an incident that no later run will close. The next bad observation opens another one."""
    from perennial.cli import incidents as incidents_module

    incidents_module.resolve(model, signal, reason)


@app.command()
def mute(
    model: ModelName,
    signal: Annotated[str, typer.Argument(help="Signal, or a pattern such as 'failure:*'.")] = "*",
    until: Annotated[str, typer.Option(help="Last date that is muted, YYYY-MM-DD; within a year.")] = "",
    reason: Annotated[str, typer.Option(help="Reason, recorded in the ledger.")] = "",
) -> None:
    """Send no alerts of a signal for a while. It is still recorded, and listed in the daily summary."""
    from perennial.cli import incidents as incidents_module

    incidents_module.mute(model, signal, until, reason)


@app.command()
def unmute(
    model: ModelName,
    signal: Annotated[str, typer.Argument(help="Signal, or the pattern, that was muted.")] = "*",
) -> None:
    """Send the alerts of a signal again that `perennial mute` stopped."""
    from perennial.cli import incidents as incidents_module

    incidents_module.unmute(model, signal)


@app.command()
def new_generation(
    model: ModelName,
    reason: Annotated[str, typer.Option(help="Why, recorded in the ledger.")] = "",
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do it; without, only say what would be done.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also if the spec fits the tables: empty all of them.")
    ] = False,
) -> None:
    """Empty tables that a changed spec does not fit, so that their partitions can be published again."""
    from perennial.cli import new_generation as new_generation_module

    new_generation_module.run(model, reason=reason, confirmed=yes, force=force)


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


app.command()(_new_command.new)
app.command()(card.card)
_governance_commands.add_commands(app)


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
