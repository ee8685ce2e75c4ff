"""One run of the data step: the state of its partitions, fetching and validating their files."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from perennial import __version__
from perennial.core.errors import PerennialError
from perennial.core.progress import Progress
from perennial.core.redaction import error_text
from perennial.core.sql import text_literal
from perennial.feeds.feed_schema import FeedSchema, translate_read_error
from perennial.feeds.text_casts import TextFormat
from perennial.ingestion import erasure_requests, publishing, typed_rows
from perennial.ingestion._label_values import impossible_label_conditions, stop_too_many_classes
from perennial.ingestion.erasure_requests import ErasureRequest
from perennial.ingestion.publishing import UnreadableError, ValidatedBatch
from perennial.spec.model_spec import ModelSpec
from perennial.spec.sources import QuerySource
from perennial.spec.text_format import TextFormatSpec
from perennial.storage import duckdb_session, landing
from perennial.storage.landing import Fingerprint, LandedFile
from perennial.storage.object_store import FileStat
from perennial.storage.part_folders import IncompleteFolderError
from perennial.validation import check_builder, validator
from perennial.validation.gx_evaluator import ValidationOutcome
from perennial.validation.suite import Expectation

#: Name of the step in the manifests of partitions.
STEP = "data"
#: Name of the step in the manifests of labels, whose key is the partition date of the rows that they belong to.
LABELS_STEP = "labels"
#: Errors of DuckDB about the value of an expression.
_OF_AN_EXPRESSION = (duckdb.ConversionException, duckdb.OutOfRangeException)
#: Expectations on the number of rows begin with this.
_ROW_COUNT = "expect_table_row_count"
#: What to do about a partition that validation stopped.
REMEDY = "read the data doc, correct the feed (or the expectation), then run this date again"
#: What of a source does not influence the result.
_WAITING: Any = {"source": {"ready"}}
log = logging.getLogger("perennial")


def row_inputs(spec: ModelSpec) -> dict[str, Any]:
    """What the published rows of a partition depend on besides the file, by digest."""
    # How long to wait for the file does not influence the result.
    section = spec.data.model_dump(exclude={"arrival": True, "arrival_hours": True, **_WAITING})
    return {
        "spec": _digest([section, spec.label.model_dump() if spec.label.source is None else None]),
        "suite": hashlib.sha256(spec.suite.encode()).hexdigest(),
        "code": __version__,
    }


def label_inputs(spec: ModelSpec) -> dict[str, Any]:
    """What the published labels of a partition depend on besides the file, by digest; rows are not among it."""
    keys = {key: spec.data.columns[key] for key in spec.data.key}
    section = spec.data.model_dump(include={"quarantine_limit", "personal", "timezone"})
    if spec.label.format is None:
        section["format"] = spec.data.format.model_dump()
    if number := _row_number_of_labels(spec):
        section["row_number"] = number
    return {"spec": _digest([spec.label.model_dump(exclude=_WAITING), keys, section]), "code": __version__}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass
class FileState:
    """The progress of one landed file through the step: the rows of a partition, or their labels.

    Attributes:
        day: partition date of the rows.
        inputs: what the result depends on, by digest; that of the file is of the bytes that were read.
        fingerprint: of the landed file; None if it has not landed.
        copy: of the rows of a query, which is fetched already; None for a file.
        rows_in: rows, or labels, in the file.
        rows_out: those that were published.
        quarantined: those in quarantine.
        data_doc: URI of the data doc; empty if there is none.
        in_great_expectations: expectations that Great Expectations itself evaluated on the rows, not SQL.
        files: `delta_tables.files_digest` of what was published, by kind of table; empty for a partition without rows.
        error: why nothing was published; None if there is no error so far.
    """

    day: str
    inputs: dict[str, Any]
    fingerprint: Fingerprint | None
    copy: LandedFile | None = None
    rows_in: int = 0
    rows_out: int = 0
    quarantined: int = 0
    data_doc: str = ""
    in_great_expectations: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    error: PerennialError | None = None


@dataclass
class PartitionRun:
    """One call of the data step, for one partition or a range of them.

    Attributes:
        spec: the model.
        con: DuckDB connection of this run.
        folder: temporary folder of this run.
        run_id: of the Airflow run.
        partitions: state of the rows of each partition that is not published yet, by date.
        labels: state of each label file that is not published yet, by the date of its rows.
        versions: version of each table written, by its kind.
        undeclared: type of each column that files of rows have and the spec does not declare, by its name.
        requests: the requests to erase rows, as `erasure_requests` read them last.
        request_files: their files then.
    """

    spec: ModelSpec
    con: duckdb.DuckDBPyConnection
    folder: Path
    run_id: str
    partitions: dict[str, FileState]
    labels: dict[str, FileState]
    versions: dict[str, int] = field(default_factory=dict)
    undeclared: dict[str, str] = field(default_factory=dict)
    requests: list[ErasureRequest] = field(default_factory=list)
    request_files: dict[str, FileStat] = field(default_factory=dict)

    def erasure_requests(self) -> list[ErasureRequest]:
        """The requests whose rows are not published again; the connection gets the secret of their hashes.

        They are read again when one was made or carried out since: a run of a range takes hours.

        Raises:
            PerennialError: the secret of a request is not the one of this environment.
        """
        files = erasure_requests.files(self.spec.name)
        if files != self.request_files:
            self.requests = list(erasure_requests.load_all(self.spec.name))
            self.request_files = files
            erasure_requests.provide_secret(self.con)
        return self.requests

    def state(self, feed: FeedSchema, day: str) -> FileState:
        """The state of the file of a feed for a date."""
        return self.partitions[day] if feed.kind == "rows" else self.labels[day]

    def published(self) -> list[FileState]:
        """The partitions whose rows were published."""
        return [p for p in self.partitions.values() if p.error is None]

    def replace(
        self,
        kind: str,
        sql: Callable[[set[str]], str],
        rows: Mapping[str, int],
        batch: ValidatedBatch,
    ) -> None:
        """Replace partitions of a table by rows of a batch, and record what was written in the files' states.

        Args:
            kind: of the table: ``published`` or ``labels``.
            sql: query of the rows of some partitions, from their dates.
            rows: number of rows that the query must give for each partition, by date.
            batch: the validated files.
        """
        for days in publishing.divide_into_commits(rows, len(batch.feed.columns) + 1):
            expected = sum(days.values())
            replaced = publishing.replace_partitions(
                self.con, self.spec, kind, sql(set(days)), days, expected, batch.files
            )
            self.versions[kind] = replaced.version
            for day in days:
                self.state(batch.feed, day).files[kind] = replaced.digests.get(day, "")


def rows_feed(spec: ModelSpec) -> FeedSchema:
    """The columns that the files of the rows must have."""
    columns, extra = spec.data.columns, spec.data.extra_columns
    return FeedSchema(
        spec.name,
        "rows",
        columns,
        extra,
        spec.personal_columns,
        spec.hides_values,
        spec.data.row_number,
        text_format(spec.data.format),
        spec.cadence,
    )


def labels_feed(spec: ModelSpec) -> FeedSchema:
    """The columns that the files of the label feed must have."""
    columns = spec.label.columns
    return FeedSchema(
        spec.name,
        "labels",
        columns,
        "ignore",
        spec.personal_columns,
        spec.hides_values,
        _row_number_of_labels(spec),
        text_format(spec.label.format or spec.data.format),
        spec.cadence,
    )


def text_format(section: TextFormatSpec) -> TextFormat:
    """How text is written, from a section of the spec."""
    values = section.model_dump()
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    single = {column: tuple(formats) for column, formats in section.date_formats.items()}
    return TextFormat(**{**values, **lists, "date_formats": single})


def _row_number_of_labels(spec: ModelSpec) -> str | None:
    """The column with the number of a label's row, if labels are in the files of the rows.

    In a label feed of its own, the number of a label says nothing about its row: there the files have the column.
    """
    number = spec.data.row_number
    return number if number in spec.label.columns and spec.label.source == spec.data.source else None


def land_file(run: PartitionRun, state: FileState, feed: FeedSchema, uri: str) -> LandedFile | None:
    """Fetch one file, and record the digest of its bytes in its inputs.

    If that fails, the error is recorded in its state. A missing file of rows that is optional is one without rows.

    Args:
        run: the run.
        state: state of the file.
        feed: the file's feed.
        uri: where the file lands, or what messages call the query.

    Returns:
        The file; None if it is missing or cannot be used.
    """
    if state.error:
        return None
    try:
        file = state.copy or landing.fetch_file(feed, state.day, uri, run.folder, run.con, state.fingerprint)
        state.inputs["source"] = file.digest
    except FileNotFoundError as error:
        incomplete = isinstance(error, IncompleteFolderError)
        if feed.kind == "rows" and run.spec.data.arrival == "optional" and not incomplete:
            state.inputs["source"] = None
            return landing.empty_file(feed, state.day, uri, run.folder)
        missing = f": {error}" if incomplete else ""
        remedy = (
            "wait for the feed, then run this date again; a range that includes it publishes the other dates"
        )
        state.error = feed.error(f"{uri} has not landed{missing}", remedy, state.day)
        return None
    except PerennialError as error:
        state.error = error
        return None
    source = run.spec.data.source
    known = run.spec.data.arrival == "optional" or (isinstance(source, QuerySource) and source.ready)
    if feed.kind == "rows" and state.copy and not file.rows and not known:
        # Of a query that is not known to be complete, unlike a file.
        state.error = feed.error(
            f"{uri} holds no rows",
            "ask the feed whether that is correct; if such partitions are normal, declare data.source.ready, or "
            "data.arrival: optional",
            state.day,
        )
        return None
    return file


def validate_and_publish(
    run: PartitionRun,
    feed: FeedSchema,
    landed: list[LandedFile],
    suite: list[Expectation],
    publish: Callable[[PartitionRun, ValidatedBatch], None],
) -> None:
    """Validate and publish files, together where possible.

    A file that cannot be read does not affect the others.

    Args:
        run: the run; errors are recorded in the states of its files.
        feed: the files' feed.
        landed: the files.
        suite: expectations of the feed.
        publish: publishes one batch.
    """
    queue, progress, done = _batches(landed, len(feed.columns)), Progress(), 0
    while queue:
        for batch in _validate(run, feed, queue.pop(0), suite):
            try:
                publish(run, batch)
                done += len(batch.files)
                progress.report("Published %d of %d files of %s", done, len(landed), feed.kind)
            except UnreadableError as error:
                if len(batch.files) > 1:
                    queue += _halves(batch.files)
                else:
                    _record_read_error(run, feed, batch.files[0], error)


def _record_read_error(run: PartitionRun, feed: FeedSchema, file: LandedFile, error: Exception) -> None:
    state = run.state(feed, file.day)
    cause = error.args[0] if isinstance(error, UnreadableError) and error.args else error
    if file.changed:
        state.error = landing.replaced_error(feed, file)
    elif isinstance(cause, TimeoutError) or (feed.kind == "labels" and isinstance(cause, _OF_AN_EXPRESSION)):
        # The cells of the file itself are cast by TRY_CAST, which does not fail.
        text = str(cause) if isinstance(cause, TimeoutError) else error_text(cause, hide=feed.hides_values)
        state.error = feed.error(
            f"label.expression fails: {text}", "correct or simplify label.expression", file.day
        )
    else:
        reason = cause if isinstance(cause, Exception) else error
        state.error = translate_read_error(feed, file.day, file.uri, reason)


def _batches(landed: list[LandedFile], columns: int) -> list[list[LandedFile]]:
    """Group files that are read together, so that a range has the same results as single partitions.

    Large files are read separately, and so are files with other types: DuckDB would read integers of one file and
    32-bit numbers of another as 32-bit numbers, which changes the integers. Nothing is read of files without rows,
    which go with the first group, so that they need no commit of their own.

    Args:
        landed: the files.
        columns: columns of each file.
    """
    big = [[f] for f in landed if (f.rows or 0) > check_builder.EXACT_QUANTILE_ROWS]
    empty = [f for f in landed if f.rows == 0]
    small: dict[tuple[str, ...], list[LandedFile]] = {}
    for file in landed:
        if file.rows != 0 and (file.rows or 0) <= check_builder.EXACT_QUANTILE_ROWS:
            small.setdefault(file.types, []).append(file)
    most = duckdb_session.files_at_once(columns)
    parts = [group[i : i + most] for group in small.values() for i in range(0, len(group), most)]
    first, *others = [*parts, *big] or [[]]
    return [batch for batch in ([*first, *empty], *others) if batch]


def _halves(files: list[LandedFile]) -> list[list[LandedFile]]:
    """Both halves of several files, one of which cannot be read: it is found without reading each one separately."""
    middle = len(files) // 2
    return [files[:middle], files[middle:]]


def _validate(
    run: PartitionRun, feed: FeedSchema, files: list[LandedFile], suite: list[Expectation]
) -> Iterator[ValidatedBatch]:
    """Validate files together, without those that cannot be read.

    A batch can be read until the next one is requested, which replaces the view.
    """
    spec, is_rows, view = run.spec, feed.kind == "rows", f"__{feed.kind}"
    try:
        typed = run.folder / f"{feed.kind}.typed.parquet"
        key = {column: spec.data.columns[column] for column in spec.data.key}
        partition = f"[{', '.join(text_literal(file.day) for file in files)}][__file + 1]"
        erased = erasure_requests.condition_sql(run.erasure_requests(), feed.columns, key, partition)
        cast_failures = typed_rows.create_landed_view(run.con, feed, files, view, typed, erased)
        checks = check_builder.build_checks(
            suite,
            feed.columns,
            spec.data.key,
            spec.data.event_time if is_rows else None,
            cast_failures,
            exact=(files[0].rows or 0) <= check_builder.EXACT_QUANTILE_ROWS,
        )
        conditions = impossible_label_conditions(spec, feed)
        with _label_time_limit(run, feed):
            # through the module: the benchmarks time this function
            findings = validator.validate(
                run.con, feed, files, checks, spec.data.quarantine_limit, view, conditions
            )
            stop_too_many_classes(run.con, spec, feed, files, findings)
        empty = [outcome for outcome in findings.outcomes if is_rows and not outcome.rows]
        for outcome in empty:
            _judge_empty(spec, outcome)
        if days := sorted(outcome.day for outcome in empty if not outcome.stopped):
            text = (
                f"{len(days)} partitions from {days[0]} to {days[-1]} have"
                if len(days) > 1
                else f"partition {days[0]} has"
            )
            log.info("Model %s: %s no rows.", spec.name, text)
        yield ValidatedBatch(feed, files, findings, cast_failures)
    except (duckdb.BinderException, duckdb.ParserException, duckdb.CatalogException):
        raise  # a fault in this library's SQL, not in the file
    except (duckdb.Error, TimeoutError) as error:
        if len(files) > 1:
            for half in _halves(files):
                yield from _validate(run, feed, half, suite)
            return
        _record_read_error(run, feed, files[0], error)


def _judge_empty(spec: ModelSpec, outcome: ValidationOutcome) -> None:
    """Let only expectations on the number of rows stop a partition without rows, and none if such ones are normal.

    All others are about values: a mean of no rows is neither right nor wrong.
    """
    reasons = [reason for reason in outcome.stopped if reason.startswith(_ROW_COUNT)]
    if reasons and spec.data.arrival != "optional":
        hint = "it has no rows; if that is normal, declare data.arrival: optional"
        outcome.stopped[:] = [*reasons[:-1], f"{reasons[-1]} ({hint})"]
        return
    outcome.stopped.clear()


def _label_time_limit(run: PartitionRun, feed: FeedSchema) -> AbstractContextManager[None]:
    """Limit the time of ``label.expression``, which its author writes; rows are validated without it."""
    return duckdb_session.time_limit(run.con) if feed.kind == "labels" else nullcontext()
