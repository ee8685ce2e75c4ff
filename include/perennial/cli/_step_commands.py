"""The commands ``perennial run STEP``: each offers the options that its step takes, and no others.

Steps are declared here, and not read from their functions, because help must appear without importing them. A test
compares the two.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import typer

__all__ = ["LIBRARY_DIGEST_HELP", "RENDEZVOUS_HELP", "STEP_COMMANDS", "add_commands"]

LIBRARY_DIGEST_HELP = "Refuse to run unless the library has this digest (`perennial library-digest`)."
RENDEZVOUS_HELP = "path or s3:// URI of the file in which trainer and workers find each other"

_Text, _Flag = str | None, bool
#: Every option: its type, its help, and its names where they do not follow from that of the argument.
_OPTIONS: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "start": (_Text, "First partition: YYYY-MM-DD; for hours YYYY-MM-DDThh, for months YYYY-MM.", ()),
    "end": (_Text, "Last partition; default: --start.", ()),
    "as_of": (_Text, "Partition of the latest data to use, written as --start.", ()),
    "force": (_Flag, "Repeat finished work.", ("--force",)),
    "reason": (_Text, "Reason, recorded in the ledger.", ()),
    "actor": (_Text, "Who starts the step, or decides on a rollback; default: the user.", ()),
    "version": (_Text, "Number of the version; default: the champion.", ()),
    "to_version": (_Text, "Version to return to; default: the previous champion.", ()),
    "backfill": (_Flag, "Part of a backfill: starts no retraining.", ("--backfill",)),
    "catch_up": (_Flag, "Also do some of what is overdue (`perennial missing`).", ("--catch-up",)),
    "request": (
        _Text,
        "Name of the request to erase rows, which `perennial erase` makes and prints.",
        (),
    ),
    "hidden": (_Flag, "Also remove records of quarantine that hide a column of the keys.", ("--hidden",)),
    "workers": (int | None, "Processes that fit the model together.", ()),
    "rendezvous": (_Text, f"{RENDEZVOUS_HELP[0].upper()}{RENDEZVOUS_HELP[1:]}.", ()),
    "run_id": (_Text, "Identifier recorded with what the step writes.", ()),
    "run_url": (_Text, "Address of the Airflow run, for MLflow.", ()),
    "model": (_Text, "Name of the model.", ("--model", "-m")),
    "spec_file": (
        _Text,
        "The model as JSON (ModelSpec.bundle) instead of a folder; -: standard input.",
        (),
    ),
    "result_file": (_Text, "File to write the result or the error to: a path or s3:// URI.", ()),
    "library_digest": (_Text, LIBRARY_DIGEST_HELP, ()),
}
#: Options of every step that are none of its arguments.
_COMMON = ("model", "spec_file", "result_file", "library_digest")


class StepCommand(NamedTuple):
    """The command of a step.

    Attributes:
        summary: what the step does, in a sentence.
        required: arguments that must be given.
        optional: its other arguments.
    """

    summary: str
    required: tuple[str, ...]
    optional: tuple[str, ...]


STEP_COMMANDS = {
    "data": StepCommand(
        "Validate and publish landed files, with the labels that are due.",
        ("start",), ("end", "force", "catch_up", "run_id"),
    ),
    "train": StepCommand(
        "Train, evaluate and register a challenger; nothing is promoted.",
        ("as_of",), ("reason", "force", "workers", "rendezvous", "actor", "run_id", "run_url"),
    ),
    "promote": StepCommand(
        "Make the challenger trained as of a date champion, or start its trial.", ("as_of",), ("actor", "reason")
    ),
    "score": StepCommand(
        "Score published partitions with the champion.", ("start",), ("end", "force", "catch_up", "run_id")
    ),
    "monitor": StepCommand(
        "Evaluate the champion on the window that ends with a date.", ("as_of",), ("force", "catch_up", "run_id")
    ),
    "decide": StepCommand(
        "Decide on a retraining after the monitoring of a date.", ("as_of",), ("actor", "backfill", "run_id")
    ),
    "conclude": StepCommand("End the trial of a challenger if it has a result.", ("as_of",), ("actor",)),
    "rollback": StepCommand(
        "Make an earlier version champion again.", ("reason",), ("to_version", "actor", "run_id")
    ),
    "publish_predictions": StepCommand(
        "Write predictions to the database that the spec names.", ("start",), ("end", "force", "catch_up", "run_id")
    ),
    "reproduce": StepCommand(
        "Train a version again from its recipe, and compare it; nothing is registered.", (), ("version", "actor")
    ),
    "erase": StepCommand(
        "Erase the rows of a request from all tables of a model.", ("request",), ("actor", "hidden", "run_id")
    ),
}  # fmt: skip


def add_commands(app: typer.Typer) -> None:
    """Add the command of each step to ``perennial run``."""
    for step, declared in STEP_COMMANDS.items():
        app.command(step, help=f"{declared.summary} The result is printed last, as one line of JSON.")(
            _command(step, declared)
        )


def _command(step: str, declared: StepCommand) -> Callable[..., None]:
    """The function of one command, whose signature declares its options."""

    def run_step(**options: Any) -> None:
        _run(step, options)

    parameters = []
    for name in (*declared.required, *declared.optional, *_COMMON):
        kind, text, names = _OPTIONS[name]
        default = inspect.Parameter.empty if name in declared.required else False if kind is bool else None
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=Annotated[
                    str if name in declared.required else kind, typer.Option(*names, help=text)
                ],
                default=default,
            )
        )
    run_step.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run_step.__annotations__ = {p.name: p.annotation for p in parameters}
    return run_step


def _run(step: str, options: dict[str, Any]) -> None:
    """Run a step with the options of its command."""
    from perennial.cli import invocation
    from perennial.core import progress
    from perennial.steps import dispatch, result_file, summaries

    progress.log_to_stderr()
    with result_file.step_outcome(options.pop("result_file")) as outcome:
        result_file.check_library_digest(options.pop("library_digest"))
        spec = invocation.resolve_spec(options.pop("model"), options.pop("spec_file"))
        outcome.result = dispatch.run(step, spec, **invocation.resolve_arguments(step, options))
    summaries.log_summary(step, spec, outcome.result)
    sys.stdout.flush()
    print(json.dumps(outcome.result, default=str), flush=True)  # noqa: T201
