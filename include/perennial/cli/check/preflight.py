"""`perennial check`: everything about the models that can be known before a night runs them, all problems at once."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.core.errors import DataError, PerennialError, SpecError
from perennial.core.sql import quote_identifier
from perennial.spec import catalog, yaml_reader
from perennial.spec.model_spec import ModelSpec
from perennial.storage import landing, object_store

if TYPE_CHECKING:
    import pyarrow as pa

    from perennial.storage.landing import FeedSchema

MADE_UP = 96
#: What a task can use of a label, by the type that label.expression gives.
LABELS = {
    "binary": ("BIGINT",),
    "multiclass": ("BIGINT", "VARCHAR"),
    "regression": ("BIGINT", "DOUBLE"),
    "ranking": ("BIGINT",),
}


@dataclass
class Report:
    """What was found about one folder.

    Attributes:
        name: the folder's name. kind: its task, or ``feature set``.
        features, expectations: how many it has; none where that could not be told.
        tried: what the SQL was run on.
        problems: each begins with file and line. notes: what was not checked, or looks odd.
    """

    name: str
    kind: str = ""
    features: int | None = None
    expectations: int | None = None
    tried: str = ""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(names: Sequence[str] = ()) -> list[Report]:
    """Check the models called ``names``, or all of them with all feature sets.

    Raises:
        SpecError: there is no model of such a name.
    """
    models, errors = catalog.load_models()
    broken: dict[str, Report] = {}
    for error in errors:
        name = error.model or "?"
        broken.setdefault(name, Report(name)).problems += error.cause.splitlines()
    for name in names:
        if name not in models and name not in broken:
            catalog.load_model_by_name(name)
    wanted = [*models, *(n for n in broken if n not in models)]
    reports = []
    for name in sorted(n for n in wanted if not names or n in names):
        report = check_model(models[name]) if name in models else broken[name]
        if name in models and name in broken:
            report.problems += broken[name].problems
        reports.append(report)
    if not names:
        used = {s.name for spec in models.values() for s in spec.feature_sets}
        reports += [
            _feature_set(name, name in used) for name in sorted(catalog.find_folders("feature_set.yaml"))
        ]
    _say_once(reports)
    return reports


def _say_once(reports: list[Report]) -> None:
    """Leave out of each report what one before it says of a shared file."""
    said: set[str] = set()
    for report in reports:
        report.problems = [
            p for p in dict.fromkeys(report.problems) if p not in said or "features.sql" not in p
        ] or (["see above: its feature set has a problem"] if report.problems else [])
        said.update(report.problems)


def _feature_set(name: str, used: bool) -> Report:
    report = Report(name, "feature set")
    try:
        catalog.load_feature_set(name)
    except SpecError as error:
        report.problems += error.cause.splitlines()
    if used:
        report.tried = "with its models"
    else:
        report.notes.append("no model names it, so its SQL was not checked")
    return report


def check_model(spec: ModelSpec, *, landed: bool = True) -> Report:
    """Check one model whose ``model.yaml`` could be read.

    Args:
        landed: look at what has landed, too.
    """
    from perennial.cli.check import sql_checks
    from perennial.validation.suite import parse_suite

    report = Report(spec.name, spec.task)
    suite, problems = parse_suite(spec.suite, spec.data.columns)
    report.expectations = len(suite) + len(problems)
    report.problems += [f"{_at(spec, 'expectations.json')}:{p.line}: {p.message}" for p in problems]
    if not report.expectations:
        report.notes.append(
            "expectations.json expects nothing: only the checks that hold for any partition are made"
        )
    _label(spec, report)
    rows = _landed(spec, report) if landed else None
    found = sql_checks.check(spec, rows, lambda: made_up(spec))
    for where, line, message in found.problems:
        report.problems.append(f"{_at(spec, where)}{f':{line}' if line else ''}: {message}")
    report.notes += found.notes
    report.features = len(found.columns) or None
    if found.columns and not found.problems:
        report.tried = "made-up rows" if rows is None else f"{rows.num_rows:,} landed rows"
    return report


def _at(spec: ModelSpec, where: str) -> str:
    """The path of a file of the model's folder, or of one of its feature sets (``name/features.sql``)."""
    folder, _, name = where.rpartition("/")
    path = next((s.folder for s in spec.feature_sets if s.name == folder), spec.folder) / name
    return yaml_reader.display_path(path)


def _label(spec: ModelSpec, report: Report) -> None:
    from perennial.ingestion.publishing import label_type

    where = yaml_reader.key_location(spec.folder / "model.yaml", "label", "expression")
    try:
        kind = label_type(spec, spec.label.columns if spec.label.source else spec.data.columns)
    except SpecError as error:
        cause = error.cause.removeprefix("model.yaml: ").split("\n")[0]
        report.problems.append(f"{where}: {cause} ({error.remedy})")
        return
    if kind not in LABELS[spec.task]:
        needed = {
            "binary": "a condition, or 0 and 1",
            "multiclass": "a text or a whole number",
            "regression": "a number",
            "ranking": "a grade: a whole number from 0 to 31",
        }
        report.problems.append(
            f"{where}: label.expression gives {kind}; task {spec.task} needs {needed[spec.task]}"
        )


def _landed(spec: ModelSpec, report: Report) -> pa.Table | None:
    """Some rows of the first partition that has landed, typed as declared; None: there are none here to look at.

    The labels of that partition are compared with what is declared of them, too.
    """
    from perennial.storage.landing import FeedSchema

    day = _first_day(spec)
    if day is None:
        report.notes.append("no partition has landed here: declared columns were not compared with a file")
        return None
    if spec.label.source and Path(landing.source_uri(spec.label.source, day)).is_file():
        feed = FeedSchema(spec.name, "labels", spec.label.columns, "ignore", spec.data.personal)
        _some(spec, feed, spec.label.source, day, report)
    feed = FeedSchema(spec.name, "rows", spec.data.columns, spec.data.extra_columns, spec.data.personal)
    found = _some(spec, feed, spec.data.source, day, report)
    return found if found is not None and found.num_rows else None


def _some(spec: ModelSpec, feed: FeedSchema, template: str, day: str, report: Report) -> pa.Table | None:
    """Some rows of a landed file; None, and it is reported: it is not what the spec declares, or cannot be read."""
    import duckdb

    from perennial.cli.check import sql_checks
    from perennial.storage.landing import create_landed_view, fetch_file

    uri = landing.source_uri(template, day)
    with tempfile.TemporaryDirectory(prefix="perennial-check-") as folder, duckdb.connect() as con:
        con.execute("SET TimeZone='UTC'; SET memory_limit='512MiB'")
        try:
            create_landed_view(con, feed, [fetch_file(feed, day, uri, Path(folder), con)])
            key = ", ".join(quote_identifier(k) for k in spec.data.key)
            filled = " AND ".join(f"{quote_identifier(k)} IS NOT NULL" for k in spec.data.key)
            listed = ", ".join(quote_identifier(c) for c in feed.columns)
            some = f"SELECT * FROM rows WHERE {filled} LIMIT {sql_checks.MAX_ROWS}"
            return con.sql(f"SELECT DISTINCT ON ({key}) {listed} FROM ({some})").to_arrow_table()
        except DataError as error:
            section = "data" if feed.kind == "rows" else "label"
            where = yaml_reader.key_location(spec.folder / "model.yaml", section, "columns")
            report.problems.append(f"{where}: {error.cause}")
        except (duckdb.Error, PerennialError, OSError) as error:
            report.notes.append(f"{uri} could not be read: {str(error).splitlines()[0][:160]}")
    return None


def _first_day(spec: ModelSpec) -> str | None:
    """The first partition date, of the first weeks, whose file lies on this machine."""
    if object_store.is_remote(landing.source_uri(spec.data.source, spec.schedule.start.isoformat())):
        return None
    days = ((spec.schedule.start + timedelta(days=i)).isoformat() for i in range(31))
    return next((day for day in days if Path(landing.source_uri(spec.data.source, day)).is_file()), None)


def made_up(spec: ModelSpec) -> pa.Table:
    """Rows of the declared types, within what the suite allows where it says so, with missing values among them."""
    import pyarrow as pa

    from perennial.validation.suite import parse_suite

    wanted: dict[str, dict[str, Any]] = {}
    for expectation in parse_suite(spec.suite, spec.data.columns)[0]:
        if "column" in expectation.kwargs:
            wanted.setdefault(expectation.kwargs["column"], {}).update(expectation.kwargs)
    types = {
        "string": pa.string(),
        "integer": pa.int64(),
        "number": pa.float64(),
        "boolean": pa.bool_(),
        "date": pa.date32(),
        "timestamp": pa.timestamp("us"),
    }
    columns = {}
    for column, kind in spec.data.columns.items():
        allowed, key = wanted.get(column, {}), column in spec.data.key
        values = [_value(kind, i, {} if key else allowed, spec.schedule.start) for i in range(MADE_UP)]
        if not key:
            values = [None if i % 11 == 5 else value for i, value in enumerate(values)]
        columns[column] = pa.array(values, types[kind])
    return pa.table(columns)


def _value(kind: str, i: int, allowed: dict[str, Any], start: date) -> Any:
    if kind == "date":
        return start + timedelta(days=i)
    if kind == "timestamp":
        return datetime(start.year, start.month, start.day) + timedelta(hours=5 * i, minutes=i)
    if kind == "boolean":
        return i % 3 == 0
    choices = allowed.get("value_set")
    if kind == "string":
        return str(choices[i % len(choices)]) if choices else f"made up {i}"
    low, high = (
        allowed.get(b) if isinstance(allowed.get(b), int | float) else None
        for b in ("min_value", "max_value")
    )
    if choices and all(isinstance(c, int | float) for c in choices):
        return choices[i % len(choices)]
    first = low if low is not None else min(0, high or 0)
    span = (high - first) if high is not None else MADE_UP
    value = first + span * i / MADE_UP if span > MADE_UP or kind == "number" else first + i % (int(span) + 1)
    return int(value) if kind == "integer" else float(value)
