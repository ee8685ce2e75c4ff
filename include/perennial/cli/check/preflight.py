"""`perennial check`: finds the problems of a model folder that can be detected before a run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from perennial.cli.check import _sql_checks
from perennial.core.errors import DataError, PerennialError, SpecError
from perennial.core.sql import quote_identifier
from perennial.ingestion.publishing import label_type
from perennial.spec import catalog, yaml_reader
from perennial.spec.model_spec import ModelSpec
from perennial.storage import landing, object_store
from perennial.storage.landing import FeedSchema, create_landed_view, fetch_file
from perennial.validation.suite import parse_suite

__all__ = ["Report", "check", "check_model", "generate_rows"]

#: Rows that are generated if none have landed.
GENERATED_ROWS = 96
#: SQL types of a label that each task accepts.
LABEL_TYPES = {
    "binary": ("BIGINT",),
    "multiclass": ("BIGINT", "VARCHAR"),
    "regression": ("BIGINT", "DOUBLE"),
    "ranking": ("BIGINT",),
}


@dataclass
class Report:
    """The result of checking one folder.

    Attributes:
        name: name of the folder.
        kind: the model's task, or ``feature set``.
        features: number of features; None if unknown.
        expectations: number of expectations; None if unknown.
        tried: what the SQL was run on.
        problems: each begins with file and line.
        notes: what was not checked, or looks unusual.
    """

    name: str
    kind: str = ""
    features: int | None = None
    expectations: int | None = None
    tried: str = ""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(names: Sequence[str] = ()) -> list[Report]:
    """Check models and feature sets.

    Args:
        names: names of models; all models and feature sets if empty.

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
    available = [*models, *(n for n in broken if n not in models)]
    reports = []
    for name in sorted(n for n in available if not names or n in names):
        report = check_model(models[name]) if name in models else broken[name]
        if name in models and name in broken:
            report.problems += broken[name].problems
        reports.append(report)
    if not names:
        used = {s.name for spec in models.values() for s in spec.feature_sets}
        reports += [
            _feature_set(name, name in used) for name in sorted(catalog.find_folders("feature_set.yaml"))
        ]
    _drop_repeated(reports)
    return reports


def _drop_repeated(reports: list[Report]) -> None:
    """Drop problems of a shared feature set from all reports but the first."""
    reported: set[str] = set()
    for report in reports:
        report.problems = [
            p for p in dict.fromkeys(report.problems) if p not in reported or "features.sql" not in p
        ] or (["see above: its feature set has a problem"] if report.problems else [])
        reported.update(report.problems)


def _feature_set(name: str, used: bool) -> Report:
    report = Report(name, "feature set")
    try:
        catalog.load_feature_set(name)
    except SpecError as error:
        report.problems += error.cause.splitlines()
    if used:
        report.tried = "with its models"
    else:
        report.notes.append("no model uses it, so its SQL was not checked")
    return report


def check_model(spec: ModelSpec, *, landed: bool = True) -> Report:
    """Check one model with a valid ``model.yaml``.

    Args:
        spec: the model.
        landed: also compare the spec with landed files.
    """
    report = Report(spec.name, spec.task)
    suite, problems = parse_suite(spec.suite, spec.data.columns)
    report.expectations = len(suite) + len(problems)
    report.problems += [f"{_at(spec, 'expectations.json')}:{p.line}: {p.message}" for p in problems]
    if not report.expectations:
        report.notes.append("expectations.json has no expectations: only the built-in checks are made")
    _label(spec, report)
    rows = _landed(spec, report) if landed else None
    findings = _sql_checks.check(spec, rows, lambda: generate_rows(spec))
    for where, line, message in findings.problems:
        report.problems.append(f"{_at(spec, where)}{f':{line}' if line else ''}: {message}")
    report.notes += findings.notes
    report.features = len(findings.columns) or None
    if findings.columns and not findings.problems:
        report.tried = "generated rows" if rows is None else f"{rows.num_rows:,} landed rows"
    return report


def _at(spec: ModelSpec, where: str) -> str:
    """The path of a file of the model, or of one of its feature sets (``name/features.sql``)."""
    folder, _, name = where.rpartition("/")
    path = next((s.folder for s in spec.feature_sets if s.name == folder), spec.folder) / name
    return yaml_reader.display_path(path)


def _label(spec: ModelSpec, report: Report) -> None:
    where = yaml_reader.key_location(spec.folder / "model.yaml", "label", "expression")
    try:
        kind = label_type(spec, spec.label.columns if spec.label.source else spec.data.columns)
    except SpecError as error:
        cause = error.cause.removeprefix("model.yaml: ").split("\n")[0]
        report.problems.append(f"{where}: {cause} ({error.remedy})")
        return
    if kind not in LABEL_TYPES[spec.task]:
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
    """Read some rows of the first landed partition with the declared types; None if that is not possible.

    The label file of that partition is also compared with label.columns.
    """
    day = _first_day(spec)
    if day is None:
        report.notes.append("no partition has landed here: declared columns were not compared with a file")
        return None
    if spec.label.source and Path(landing.source_uri(spec.label.source, day)).is_file():
        feed = FeedSchema(spec.name, "labels", spec.label.columns, "ignore", spec.data.personal)
        _read_sample(spec, feed, spec.label.source, day, report)
    feed = FeedSchema(spec.name, "rows", spec.data.columns, spec.data.extra_columns, spec.data.personal)
    rows = _read_sample(spec, feed, spec.data.source, day, report)
    return rows if rows is not None and rows.num_rows else None


def _read_sample(
    spec: ModelSpec, feed: FeedSchema, template: str, day: str, report: Report
) -> pa.Table | None:
    """Read some rows of a landed file; report a problem and return None if that fails."""
    uri = landing.source_uri(template, day)
    with tempfile.TemporaryDirectory(prefix="perennial-check-") as folder, duckdb.connect() as con:
        con.execute("SET TimeZone='UTC'; SET memory_limit='512MiB'")
        try:
            create_landed_view(con, feed, [fetch_file(feed, day, uri, Path(folder), con)])
            key = ", ".join(quote_identifier(k) for k in spec.data.key)
            filled = " AND ".join(f"{quote_identifier(k)} IS NOT NULL" for k in spec.data.key)
            listed = ", ".join(quote_identifier(c) for c in feed.columns)
            some = f"SELECT * FROM rows WHERE {filled} LIMIT {_sql_checks.MAX_ROWS}"
            rows: pa.Table = con.sql(f"SELECT DISTINCT ON ({key}) {listed} FROM ({some})").to_arrow_table()
            return rows
        except DataError as error:
            section = "data" if feed.kind == "rows" else "label"
            where = yaml_reader.key_location(spec.folder / "model.yaml", section, "columns")
            report.problems.append(f"{where}: {error.cause}")
        except (duckdb.Error, PerennialError, OSError) as error:
            report.notes.append(f"{uri} could not be read: {str(error).splitlines()[0][:160]}")
    return None


def _first_day(spec: ModelSpec) -> str | None:
    """The first partition date, within the first month, whose file is on this machine."""
    if object_store.is_remote(landing.source_uri(spec.data.source, spec.schedule.start.isoformat())):
        return None
    days = ((spec.schedule.start + timedelta(days=i)).isoformat() for i in range(31))
    return next((day for day in days if Path(landing.source_uri(spec.data.source, day)).is_file()), None)


def generate_rows(spec: ModelSpec) -> pa.Table:
    """Generate rows of the declared types, within the ranges of the suite, some values missing."""
    limits: dict[str, dict[str, Any]] = {}
    for expectation in parse_suite(spec.suite, spec.data.columns)[0]:
        if "column" in expectation.kwargs:
            limits.setdefault(expectation.kwargs["column"], {}).update(expectation.kwargs)
    types: dict[str, pa.DataType] = {
        "string": pa.string(),
        "integer": pa.int64(),
        "number": pa.float64(),
        "boolean": pa.bool_(),
        "date": pa.date32(),
        "timestamp": pa.timestamp("us"),
    }
    columns = {}
    for column, kind in spec.data.columns.items():
        allowed, key = limits.get(column, {}), column in spec.data.key
        values = [_value(kind, i, {} if key else allowed, spec.schedule.start) for i in range(GENERATED_ROWS)]
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
        return str(choices[i % len(choices)]) if choices else f"value {i}"
    low, high = (
        allowed.get(b) if isinstance(allowed.get(b), int | float) else None
        for b in ("min_value", "max_value")
    )
    if choices and all(isinstance(c, int | float) for c in choices):
        return choices[i % len(choices)]
    first = low if low is not None else min(0, high or 0)
    span = (high - first) if high is not None else GENERATED_ROWS
    value = (
        first + span * i / GENERATED_ROWS
        if span > GENERATED_ROWS or kind == "number"
        else first + i % (int(span) + 1)
    )
    return int(value) if kind == "integer" else float(value)
