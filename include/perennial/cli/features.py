"""The commands ``perennial features``: list, show, check and build feature tables."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.text import Text

from perennial.cli import terminal
from perennial.core.errors import PerennialError
from perennial.features import feature_tables, feature_tests
from perennial.features.history import check_sql
from perennial.spec import catalog
from perennial.spec.feature_table import FeatureTable
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, manifests
from perennial.training.studies import usefulness
from perennial.training.studies.usefulness import UnitUsefulness

__all__ = ["build", "check", "show", "show_all"]
#: What the command says about a table or column, by the verdict on its usefulness.
_VERDICTS = {"helps": "helps", "harms": "harms", "useless": "does not help", "unclear": "may help"}


def show_all(*, as_json: bool) -> None:
    """Print all feature tables.

    Args:
        as_json: print JSON.

    Raises:
        SpecError: a table's folder is invalid.
    """
    models, _ = catalog.load_models()
    tables = [_summary(catalog.load_feature_table(name), models) for name in _names()]
    if as_json:
        print(json.dumps(tables))  # noqa: T201
        return
    if not tables:
        terminal.console().print("There are no feature tables; see docs/features.md.")
        return
    columns = ("table", "entity", "features", "sources", "used by", "partitions", "newest", "rows")
    printed = terminal.table(*columns, right=("features", "partitions", "rows"))
    for table in tables:
        printed.add_row(
            table["name"], ", ".join(table["entity"]), str(len(table["features"])), ", ".join(table["sources"]),
            ", ".join(table["used_by"]) or "none", str(table["partitions"]), table["newest"] or "none",
            f"{table['rows']:,}",
        )  # fmt: skip
    terminal.console().print(printed)


def _names() -> list[str]:
    return sorted(catalog.find_folders(catalog.TABLE_FILE))


def _summary(table: FeatureTable, models: dict[str, ModelSpec]) -> dict[str, Any]:
    """What there is of a table, as JSON."""
    files = delta_tables.files_by_partition(feature_tables.uri(table))
    used_by = [n for n, spec in models.items() if table.name in {j.table for j in spec.features.tables}]
    return {
        "name": table.name,
        "owner": table.owner,
        "description": table.description,
        "sources": [source.model for source in table.sources],
        "entity": table.entity,
        "features": table.features,
        "lookback": str(table.lookback),
        "known_after": str(table.known_after),
        "max_age": str(table.age_limit),
        "used_by": used_by,
        "partitions": len(files),
        "newest": max(files, default=None),
        "rows": sum(file.rows for listed in files.values() for file in listed),
    }


def show(name: str, *, as_json: bool) -> None:
    """Print one table, what its newest partitions cost, and what it is worth to each model.

    Args:
        name: its name.
        as_json: print JSON.

    Raises:
        SpecError: there is no such table, or its folder is invalid.
    """
    table = catalog.load_feature_table(name)
    summary = _summary(table, catalog.load_models()[0])
    files = delta_tables.files_by_partition(feature_tables.uri(table))
    newest = sorted(files)[-5:]
    done = manifests.read_all(feature_tables.table_name(table), feature_tables.STEP, newest)
    costs = [
        {
            "partition": day,
            "rows": m.rows_out,
            "seconds": m.duration,
            "cpu_seconds": m.outputs.get("cpu_seconds"),
            "bytes": m.outputs.get("bytes"),
            "memory_mb": m.memory_mb,
        }
        for day, m in sorted(done.items())
    ]
    worth = _usefulness(name, summary["used_by"])
    if as_json:
        print(json.dumps(summary | {"newest_partitions": costs, "usefulness": worth}))  # noqa: T201
        return
    console = terminal.console()
    for key, value in summary.items():
        text = ", ".join(f"{k} ({v})" for k, v in value.items()) if isinstance(value, dict) else value
        text = (", ".join(text) or "none") if isinstance(text, list) else text
        console.print(Text(f"{key.replace('_', ' '):12} {text}"))
    if costs:
        columns = ("partition", "rows", "seconds", "CPU seconds", "bytes", "memory (MiB)")
        printed = terminal.table(*columns, right=columns[1:])
        for cost in costs:
            printed.add_row(
                str(cost["partition"]),
                f"{cost['rows']:,}",
                f"{cost['seconds']:.2f}",
                "" if cost["cpu_seconds"] is None else f"{cost['cpu_seconds']:.2f}",
                "" if cost["bytes"] is None else f"{cost['bytes']:,}",
                f"{cost['memory_mb']:,}",
            )
        console.print(printed)
    _print_usefulness(worth)


def _usefulness(table: str, models: list[str]) -> dict[str, list[UnitUsefulness]]:
    """What a table and its columns are worth to each model, as far as it was measured, the table first."""
    worth = {}
    for model in models:
        known = usefulness.latest(model)
        units = known["units"] if known else []
        of_table = [u for u in units if u["kind"] == "table" and u["name"] == table]
        of_table += [u for u in units if u["kind"] == "table column" and u["name"].startswith(f"{table}.")]
        worth[model] = of_table
    return worth


def _print_usefulness(worth: dict[str, list[UnitUsefulness]]) -> None:
    """Print what a table and its columns are worth to each model."""
    console = terminal.console()
    columns = ("model", "without", "loss without it", "with it", "rise", "interval", "so it", "as of")
    printed = terminal.table(*columns, right=columns[2:6])
    for model, units in worth.items():
        for unit in units:
            printed.add_row(
                model, unit["name"], f"{unit['loss_without']:.4f}", f"{unit['loss']:.4f}", f"{unit['rise']:+.2%}",
                f"{unit['low']:+.2%} to {unit['high']:+.2%}", _VERDICTS[unit["verdict"]], unit["as_of"],
            )  # fmt: skip
    if printed.row_count:
        console.print(printed)
    for model in [model for model, units in worth.items() if not units]:
        console.print(
            f"What it is worth to {model} was not measured yet: a training does, once there is a champion."
        )


def check(name: str | None) -> None:
    """Check tables: folder, SQL, tests, and that no value depends on later rows. Exit status 1 if there are problems.

    Args:
        name: name of a table; all tables when None.
    """
    console, failed = terminal.console(), False
    for table_name in [name] if name else _names():
        problems, tried = problems_of(table_name)
        failed |= bool(problems)
        console.print(
            Text.assemble(f"{table_name}: ", ("good", "green") if not problems else ("", "")), tried
        )
        for problem in problems:
            console.print(Text.assemble(("problem  ", "red"), problem))
    if failed:
        raise typer.Exit(1)


def problems_of(name: str) -> tuple[list[str], str]:
    """The problems of a table, and what its SQL was tried on."""
    try:
        table = catalog.load_feature_table(name)
        check_sql(table)
        problems = feature_tests.failures(table)
        tried = f"{len(table.tests)} tests"
        day = feature_tables.check_times(table)
        tried += f", published rows up to {day}" if day else ", no published rows"
    except PerennialError as error:
        return [*error.cause.splitlines(), f"What to do: {error.remedy}"], ""
    return problems, tried


def build(name: str, start: str, end: str | None, *, force: bool) -> None:
    """Compute partitions of a table that are missing or outdated, and print how many rows they have.

    Args:
        name: name of the table.
        start: first partition.
        end: last partition; ``start`` when None.
        force: also compute those that are up to date.

    Raises:
        PerennialError: there is no such table or partition, or its SQL failed.
    """
    table = catalog.load_feature_table(name)
    result = feature_tables.build(table, start, end, force=force)
    if not result.rows and not result.unchanged:
        raise PerennialError(
            f"feature table {name}: its sources have no rows of {start}{f'..{end}' if end else ''}",
            f"run the data step of {', '.join(s.model for s in table.sources)} for these partitions first",
        )
    for day, count in result.rows.items():
        terminal.console().print(f"{day}: {count:,} rows")
    terminal.console().print(f"{len(result.rows)} partitions computed, {result.unchanged} were up to date")
