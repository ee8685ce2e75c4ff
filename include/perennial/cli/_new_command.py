"""The command ``perennial new``: its options are the answers that a person can give in advance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from perennial.cli import terminal

if TYPE_CHECKING:
    from perennial.cli.new.wizard import CreatedModel

__all__ = ["new"]

_Name = Annotated[str, typer.Argument(help="Name of the model: lower case letters, digits, _.")]
_Sample = Annotated[
    list[Path] | None,
    typer.Option("--sample", "-s", help="Sample file, parquet or CSV; repeat for several files."),
]
_Connection = Annotated[
    str | None,
    typer.Option(
        help="Connection to a database that has the rows, instead of a file: PERENNIAL_CONNECTION_NAME."
    ),
]
_Table = Annotated[str | None, typer.Option(help="Table of the database with the rows.")]
_Sql = Annotated[str | None, typer.Option(help="Query of the database that gives the rows.")]
_Task = Annotated[str | None, typer.Option(help="binary, multiclass, regression or ranking.")]
_Label = Annotated[str | None, typer.Option(help="Column to predict.")]
_Positive = Annotated[str | None, typer.Option(help="Binary: value of the positive class.")]
_Key = Annotated[
    list[str] | None,
    typer.Option("--key", help="Column that identifies a row, or row: its number; may be repeated."),
]
_EventTime = Annotated[str | None, typer.Option(help="Column with the time of the event, or none.")]
_PartitionBy = Annotated[
    str | None,
    typer.Option(help="Column by which rows without dates are divided into partitions, in its order."),
]
_AtRandom = Annotated[bool, typer.Option("--at-random", help="Divide the rows into partitions at random.")]
_Partitions = Annotated[
    int | None, typer.Option(min=2, max=1000, help="Number of partitions of rows without dates.")
]
_Every = Annotated[
    Literal["hour", "day", "week", "month"] | None,
    typer.Option(help="Length of a partition: hour, day, week or month."),
]
_TimeZone = Annotated[
    str | None,
    typer.Option(
        help="Time zone whose days partitions are, such as Europe/Berlin; default: that of the times."
    ),
]
_Header = Annotated[
    bool | None,
    typer.Option("--header/--no-header", help="Whether the first line of text has the names of columns."),
]
_DateOrder = Annotated[
    Literal["day", "month"] | None,
    typer.Option(help="What is first in dates such as 03/04/2024: day or month."),
]
_Decimal = Annotated[
    Literal[".", ","] | None,
    typer.Option(help="Decimal sign of numbers such as 1,234: a point or a comma."),
]
_ZeroOne = Annotated[
    Literal["numbers", "booleans"] | None,
    typer.Option(help="What columns are that have only 0 and 1: numbers or booleans."),
]
_Group = Annotated[str | None, typer.Option(help="Ranking: column that identifies a row's list.")]
_Owner = Annotated[str | None, typer.Option(help="Who is responsible for the model.")]
_Description = Annotated[str | None, typer.Option(help="What it predicts.")]
_Personal = Annotated[
    list[str] | None, typer.Option("--personal", help="Column of personal data; may be repeated.")
]
_TargetFolder = Annotated[
    Path | None,
    typer.Option(help="Folder to create it in; default: the first of PERENNIAL_MODELS, or include/models."),
]
_Land = Annotated[bool | None, typer.Option(help="Copy the sample into the landing area.")]
_RunSteps = Annotated[
    bool | None,
    typer.Option(
        "--run/--no-run",
        help="Then publish the sample, train, promote through the gate, score and monitor; default: ask, with "
        "--yes: no.",
    ),
]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask no questions; accept every suggestion.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the files; write nothing.")]


def new(
    name: _Name,
    sample: _Sample = None,
    connection: _Connection = None,
    table: _Table = None,
    sql: _Sql = None,
    task: _Task = None,
    label: _Label = None,
    positive: _Positive = None,
    key: _Key = None,
    event_time: _EventTime = None,
    partition_by: _PartitionBy = None,
    at_random: _AtRandom = False,
    partitions: _Partitions = None,
    every: _Every = None,
    timezone: _TimeZone = None,
    header: _Header = None,
    date_order: _DateOrder = None,
    decimal: _Decimal = None,
    zero_one: _ZeroOne = None,
    group: _Group = None,
    owner: _Owner = None,
    description: _Description = None,
    personal: _Personal = None,
    into: _TargetFolder = None,
    land: _Land = None,
    run_steps: _RunSteps = None,
    yes: _Yes = False,
    dry_run: _DryRun = False,
) -> None:
    """Create a model's folder from a sample: spec, features, suite and README, ready to check and to run."""
    from perennial.cli.new import first_run, wizard
    from perennial.cli.new.query_sample import QueryOfRows
    from perennial.cli.new.samples.choices import ReadingChoices

    answers = wizard.GivenAnswers(
        task=task, label=label, positive=positive, key=key or [], event_time=event_time, group=group,
        owner=owner, description=description, personal=personal, land=land, partition_by=partition_by,
        at_random=at_random, partitions=partitions, every=every, timezone=timezone,
        reading=ReadingChoices(
            None if header is None else "yes" if header else "no", date_order, decimal, zero_one
        ),
    )  # fmt: skip
    created = wizard.create_model_folder(
        name, sample or [], answers, into, ask=not yes, dry_run=dry_run,
        query=QueryOfRows.of(connection, table, sql),
    )  # fmt: skip
    _print_created(created, dry_run)
    if not dry_run and not first_run.offer(
        created.folder, created.first, created.last, run_steps, ask=not yes
    ):
        raise typer.Exit(1)


def _print_created(created: CreatedModel, dry_run: bool) -> None:
    """Print where the model is, or with ``dry_run`` what its files would contain, and what to know about it."""
    console = terminal.console()
    if dry_run:
        for file, text in created.texts.items():
            console.print(Text(f"--- {created.folder / file}\n{text}"))
    else:
        console.print(f"Created {created.folder}")
    for line in created.remarks:
        console.print(Text(f"  {line}"))
