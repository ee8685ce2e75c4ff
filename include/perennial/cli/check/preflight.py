"""`perennial check`: finds the problems of a model folder that can be detected before a run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from perennial.cli.check import _sql_checks
from perennial.cli.check._bounded import run_bounded
from perennial.core.errors import (
    DatabaseError,
    DatabaseRequestError,
    DataError,
    PerennialError,
    SpecError,
    StorageError,
)
from perennial.core.partitions import PartitionRange
from perennial.core.redaction import error_text
from perennial.core.sql import quote_identifier
from perennial.databases import connections
from perennial.features import feature_tests, history, lineage
from perennial.feeds.feed_schema import FeedSchema
from perennial.ingestion import model_tables, query_feed
from perennial.ingestion.publishing import label_type
from perennial.ingestion.run import labels_feed, rows_feed
from perennial.ingestion.suite_queries import query_problems
from perennial.ingestion.typed_rows import create_landed_view
from perennial.monitoring.drift_verdict import QUALITY_SIGNALS
from perennial.spec import catalog, yaml_reader
from perennial.spec.constraints import MIN_BASELINE_PARTITIONS, direction
from perennial.spec.gate.risk import DEMANDS
from perennial.spec.model_spec import ModelSpec
from perennial.spec.sources import QuerySource
from perennial.storage import landing, leftovers, object_store
from perennial.storage.landing import LandedFile, fetch_file
from perennial.validation import dry_run, validator
from perennial.validation.suite import Expectation, SuiteProblem, parse_suite

__all__ = ["Report", "check", "check_model", "generate_rows", "monitoring_notes"]

#: Rows that are generated if none have landed.
GENERATED_ROWS = 96
#: Days at the beginning and at the end of the schedule of which a landed file is looked for.
SEARCHED_PARTITIONS = 31
#: Largest file on S3 that is copied here, to read some of its rows.
MAX_COPY_BYTES = 256 << 20
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
        kind: the model's task, ``feature set`` or ``feature table``.
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
    """Check models, feature sets and feature tables.

    Args:
        names: names of models; all models, feature sets and feature tables if empty.

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
        reports += [_feature_table(name) for name in sorted(catalog.find_folders(catalog.TABLE_FILE))]
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


def _feature_table(name: str) -> Report:
    """The result of checking a feature table: its SQL, and its tests."""
    report = Report(name, "feature table")
    try:
        table = catalog.load_feature_table(name)
        history.check_sql(table)
        report.problems += [f"{_folder(table.folder)}: {line}" for line in feature_tests.failures(table)]
    except SpecError as error:
        report.problems += error.cause.splitlines()
        return report
    report.features, report.tried = len(table.features), f"{len(table.tests)} tests"
    if not table.tests:
        report.notes.append("it has no tests: add rows of the history and the features that they give")
    return report


def _folder(path: Path) -> str:
    return f"{yaml_reader.display_path(path)}/{catalog.TABLE_FILE}"


def check_model(spec: ModelSpec, *, landed: bool = True) -> Report:
    """Check one model with a valid ``model.yaml``.

    Args:
        spec: the model.
        landed: also compare the spec with landed files and with the tables in the lake.
    """
    report = Report(spec.name, spec.task)
    suite, problems = parse_suite(spec.suite, spec.data.columns)
    report.expectations = len(suite) + len(problems)
    problems += _suite_problems(spec, suite)
    report.problems += [f"{_at(spec, 'expectations.json')}:{p.line}: {p.message}" for p in problems]
    if not report.expectations:
        report.notes.append("expectations.json has no expectations: only the built-in checks are made")
    _label(spec, report)
    report.problems += _risk_problems(spec)
    report.notes += _key_notes(spec) + _bound_notes(spec) + monitoring_notes(spec)
    if landed and not report.problems:
        _tables(spec, report)
    rows = _landed(spec, report) if landed else None
    findings = _sql_checks.check(spec, rows, lambda: generate_rows(spec))
    for where, line, message in findings.problems:
        report.problems.append(f"{_at(spec, where)}{f':{line}' if line else ''}: {message}")
    report.notes += findings.notes
    report.features = len(findings.columns) or None
    if findings.columns and not findings.problems:
        report.tried = "generated rows" if rows is None else f"{rows.num_rows:,} landed rows"
    return report


def _suite_problems(spec: ModelSpec, suite: list[Expectation]) -> list[SuiteProblem]:
    """What DuckDB and Great Expectations refuse of expectations."""
    columns = spec.data.columns
    refused = [*validator.pattern_problems(suite), *query_problems(suite, columns)]
    lines = {problem.line for problem in refused}
    usable = [expectation for expectation in suite if expectation.line not in lines]
    return refused + (dry_run.argument_problems(usable, columns, spec.data.key) if usable else [])


def _at(spec: ModelSpec, where: str) -> str:
    """The path of a file of the model, or of one of its feature sets (``name/features.sql``)."""
    folder, _, name = where.rpartition("/")
    path = next((s.folder for s in spec.feature_sets if s.name == folder), spec.folder) / name
    return yaml_reader.display_path(path)


def _label(spec: ModelSpec, report: Report) -> None:
    where = yaml_reader.key_location(spec.folder / "model.yaml", "label", "expression")

    def determine_type() -> str:
        kind = label_type(spec)
        lineage.check_label(spec)
        return kind

    try:
        kind = run_bounded(determine_type, _sql_checks.SECONDS)
    except TimeoutError:
        report.problems.append(f"{where}: label.expression does not end: {spec.label.expression!r}")
        return
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


def _risk_problems(spec: ModelSpec) -> list[str]:
    """What a high risk demands and the spec lacks, and reasons for what it does not lack."""
    if spec.risk is None:
        return []
    given = [name for name in DEMANDS if getattr(spec.gate, name, None) is not None]
    if spec.retention.rows or spec.retention.predictions:
        given.append("retention")
    where = yaml_reader.key_location(spec.folder / "model.yaml", "risk", "level")
    return [
        f"{where}: risk.level is high, which demands {DEMANDS[name]}: add it, or say in risk.without.{name} why the "
        "model does without"
        for name in spec.risk.unmet(spec.task, given)
    ] + [
        f"{where}: risk.without.{name} gives a reason for something that "
        f"{'is there' if name in given else 'is not demanded'}: remove it"
        for name in spec.risk.needless(spec.task, given)
    ]


def _bound_notes(spec: ModelSpec) -> list[str]:
    """Bounds of the gate that only refuse challengers for being too good."""
    notes = []
    for metric, bound in spec.gate.bounds.items():
        wanted, given = ("min", "max") if direction(metric) == "higher" else ("max", "min")
        if getattr(bound, wanted) is None:
            notes.append(
                f"gate.bounds.{metric} has only {given}, but a {direction(metric)} {metric} is better: "
                f"it refuses challengers that are too good; {wanted} refuses those that are not good enough"
            )
    return notes


def _key_notes(spec: ModelSpec) -> list[str]:
    """Columns of the key whose values a number does not keep apart."""
    return [
        f"data.key: {name!r} is a number, and integers above 2^53 become the same number: declare it an integer, or a "
        "string if it has more than 18 digits"
        for name in spec.data.key
        if spec.data.columns[name] == "number"
    ]


def _tables(spec: ModelSpec, report: Report) -> None:
    """Compare the spec with the model's tables in the lake."""
    try:
        states = model_tables.compare(spec)
    except PerennialError as error:
        report.notes.append(f"the tables in the lake were not compared: {error.cause.splitlines()[0][:160]}")
        return
    where = yaml_reader.display_path(spec.folder / "model.yaml")
    remedy = model_tables.REMEDY.format(model=spec.name)
    for state in states:
        report.problems += [f"{where}: {state.kind}: {conflict} ({remedy})" for conflict in state.conflicts]
        for change in state.widened:
            report.notes.append(
                f"{state.kind}: the next step converts column {change.column!r} from {change.before} to {change.after}"
            )


def monitoring_notes(spec: ModelSpec) -> list[str]:
    """What monitoring will not be able to follow, because too few partitions are held out."""
    holdout = spec.training.holdout
    if holdout.partitions(spec.cadence) >= MIN_BASELINE_PARTITIONS:
        return []
    return [
        f"training.holdout is {holdout}: monitoring cannot follow such a model. It compares later partitions with at "
        f"least {MIN_BASELINE_PARTITIONS} held-out ones; with fewer, {', '.join(QUALITY_SIGNALS)} and the verdict are "
        f"undetermined. Publish more partitions, set training.holdout to {MIN_BASELINE_PARTITIONS} partitions or more, "
        "and train again"
    ]


def _landed(spec: ModelSpec, report: Report) -> pa.Table | None:
    """Read some rows of the first landed partition with the declared types; None if that is not possible.

    The label file of that partition is also compared with label.columns.
    """
    _try_queries(spec, report)
    source = spec.data.source
    if not isinstance(source, str):
        return None
    try:
        day = _landed_day(spec, source)
        if day is None:
            periods = " or ".join(f"from {days.start} to {days.end}" for days in _searched(spec))
            report.notes.append(
                f"no partition has landed here {periods}: declared columns were not compared with a file"
            )
            return None
        label_source = spec.label.source
        if isinstance(label_source, str) and landing.has_landed(landing.source_uri(label_source, day)):
            _read_sample(spec, labels_feed(spec), label_source, day, report)
        rows = _read_sample(spec, rows_feed(spec), source, day, report)
    except StorageError as error:
        report.notes.append(
            f"the landing area cannot be read, so declared columns were not compared with a file: "
            f"{error.cause.splitlines()[0][:300]} ({error.remedy})"
        )
        return None
    return rows if rows is not None and rows.num_rows else None


def _read_sample(
    spec: ModelSpec, feed: FeedSchema, template: str, day: str, report: Report
) -> pa.Table | None:
    """Read some rows of a landed file; report a problem and return None if that fails."""
    uri = landing.source_uri(template, day)
    stat = landing.landed_stat(uri) if object_store.is_remote(uri) else None
    if stat and stat.size > MAX_COPY_BYTES:
        report.notes.append(
            f"{uri} has {stat.size / 1e6:,.0f} MB: it was not copied, so declared columns were not compared with it"
        )
        return None
    with (
        leftovers.temporary_folder("perennial-check-", Path(tempfile.gettempdir())) as folder,
        duckdb.connect() as con,
    ):
        con.execute("SET TimeZone='UTC'; SET memory_limit='512MiB'")
        try:
            file = fetch_file(feed, day, uri, folder, con)
            failures = create_landed_view(con, feed, [file], typed=Path(folder) / "typed.parquet")
            _check_readable(con, feed, file, failures)
            key = ", ".join(quote_identifier(k) for k in spec.data.key)
            filled = " AND ".join(f"{quote_identifier(k)} IS NOT NULL" for k in spec.data.key)
            listed = ", ".join(quote_identifier(c) for c in feed.columns)
            some = f"SELECT * FROM __rows WHERE {filled} LIMIT {_sql_checks.MAX_ROWS}"
            rows: pa.Table = con.sql(f"SELECT DISTINCT ON ({key}) {listed} FROM ({some})").to_arrow_table()
            return rows
        except DataError as error:
            section = "data" if feed.kind == "rows" else "label"
            where = yaml_reader.key_location(spec.folder / "model.yaml", section, "columns")
            report.problems.append(f"{where}: {error.cause}")
        except (duckdb.Error, PerennialError, OSError) as error:
            text = error_text(error, hide=spec.hides_values, names=feed.columns)
            report.notes.append(f"{uri} could not be read: {text}")
    return None


def _check_readable(
    con: duckdb.DuckDBPyConnection, feed: FeedSchema, file: LandedFile, failures: Mapping[str, str]
) -> None:
    """Refuse columns none of whose values can be read as the declared type; the step names single cells.

    Raises:
        DataError: there are such columns.
    """
    if not failures:
        return
    counts = ", ".join(
        f"count({quote_identifier(column)}), count(*) FILTER ({failed})"
        for column, failed in failures.items()
    )
    some = f"SELECT * FROM __rows LIMIT {_sql_checks.MAX_ROWS}"
    values = con.execute(f"SELECT {counts} FROM ({some})").fetchall()[0]
    types = dict(zip((c for c in feed.columns if c != feed.row_number), file.types, strict=True))
    unreadable = [
        f"column {column!r} is declared {feed.columns[column]}; the file has {types[column]}, and none of its first "
        f"{failed} values can be read as {feed.columns[column]}"
        for column, read, failed in zip(failures, values[::2], values[1::2], strict=True)
        if failed and not read
    ]
    if unreadable:
        raise feed.error(f"{file.uri}: {'; '.join(unreadable)}", "correct data.columns", file.day)


def _try_queries(spec: ModelSpec, report: Report) -> None:
    """Compare the columns of queries with those declared, where their database can be reached; no row is read."""
    for section, source in (("data", spec.data.source), ("label", spec.label.source)):
        if not isinstance(source, QuerySource):
            continue
        feed = rows_feed(spec) if section == "data" else labels_feed(spec)
        where = yaml_reader.key_location(spec.folder / "model.yaml", section, "source", "sql")
        try:
            query_feed.check_query(feed, source)
        except DataError as error:
            report.problems.append(f"{where}: {error.cause}")
        except DatabaseRequestError as error:
            if connections.is_defined(source.connection):
                report.problems.append(f"{where}: {error.cause} ({error.remedy})")
            else:
                report.notes.append(f"{section}.source was not tried: {error.cause} ({error.remedy})")
        except DatabaseError as error:
            report.notes.append(f"{section}.source was not tried: {error.cause} ({error.remedy})")


def _landed_day(spec: ModelSpec, source: str) -> str | None:
    """The first partition date whose file has landed, of those that are searched.

    Raises:
        StorageError: the landing area cannot be reached.
    """
    days = (day for searched in _searched(spec) for day in searched)
    return next((d for d in days if landing.has_landed(landing.source_uri(source, d))), None)


def _searched(spec: ModelSpec) -> list[PartitionRange]:
    """The dates of which a landed file is looked for: the first ones, and the last ones if older files are deleted."""
    cadence, present = spec.cadence, spec.cadence.key_of(datetime.now(UTC))
    start = spec.first_partition
    last = min(present, spec.last_partition or present)
    first = cadence.range(start, cadence.shift(start, SEARCHED_PARTITIONS - 1))
    recent = max(cadence.shift(first.end, 1), cadence.shift(last, 1 - SEARCHED_PARTITIONS))
    return [first, cadence.range(recent, last)] if recent <= last else [first]


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
