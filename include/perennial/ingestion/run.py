"""One run of the data step: the state of its partitions, fetching and validating their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from perennial.core import dates
from perennial.core.errors import PerennialError
from perennial.ingestion.publishing import UnreadableError, ValidatedBatch
from perennial.spec.model_spec import ModelSpec
from perennial.storage import landing, manifests
from perennial.storage.landing import FeedSchema, LandedFile
from perennial.validation import check_builder, validator
from perennial.validation.suite import Expectation

#: Name of the step, in manifests.
STEP = "data"
#: What to do about a partition that validation stopped.
REMEDY = "read the data doc, correct the feed (or the expectation), then run this date again"


@dataclass
class PartitionState:
    """The progress of one partition through the step.

    Attributes:
        day: partition date.
        inputs: what the result depends on, by digest.
        rows_in: rows in the file.
        rows_out: rows published.
        quarantined: rows in quarantine.
        labels: labels published with the partition.
        label_date: partition date of the rows that these labels belong to.
        label_state: ``published``, ``missing``, ``refused``, ``in the rows``, or empty if labels were not processed.
        labels_quarantined: labels in quarantine.
        data_doc: URI of the data doc.
        error: why the partition was not published; None if there is no error so far.
    """

    day: str
    inputs: dict[str, Any]
    rows_in: int = 0
    rows_out: int = 0
    quarantined: int = 0
    labels: int = 0
    label_date: str = ""
    label_state: str = ""
    labels_quarantined: int = 0
    data_doc: str = ""
    error: PerennialError | None = None


@dataclass
class PartitionRun:
    """One call of the data step, for one partition or a range of them.

    Attributes:
        spec: the model.
        con: DuckDB connection of this run.
        folder: temporary folder of this run.
        run_id: of the Airflow run.
        partitions: state of each partition that is not published yet, by date.
        versions: version of each table written, by its kind.
    """

    spec: ModelSpec
    con: duckdb.DuckDBPyConnection
    folder: Path
    run_id: str
    partitions: dict[str, PartitionState]
    versions: dict[str, int] = field(default_factory=dict)

    def without_error(self) -> list[PartitionState]:
        """The partitions without an error so far."""
        return [p for p in self.partitions.values() if p.error is None]


def labelled_rows_digest(spec: ModelSpec, day: str, partitions: dict[str, PartitionState]) -> str | None:
    """SHA-256 of the file whose rows a partition's labels belong to; None if it was not published.

    Args:
        spec: the model.
        day: date of the partition that the labels come with.
        partitions: state of the partitions of this run.
    """
    label_date = dates.add_days(day, -spec.label.arrives_after_days)
    if label_date in partitions and partitions[label_date].error is None:
        return str(partitions[label_date].inputs["source"])
    manifest = manifests.read(spec.name, STEP, label_date) if label_date != day else None
    return manifest.inputs["source"] if manifest else None


def land_file(
    run: PartitionRun, partition: PartitionState, feed: FeedSchema, uri: str, *, required: bool
) -> LandedFile | None:
    """Fetch one file of a partition; if that fails, the error is recorded in the partition.

    Args:
        run: the run.
        partition: the partition that the file comes with.
        feed: the file's feed.
        uri: where the file lands.
        required: stop the partition if the file is missing or has no rows (true for rows, not for labels).

    Returns:
        The file; None if it is missing or cannot be used.
    """
    try:
        day = partition.day if required else partition.label_date
        file = landing.fetch_file(feed, day, uri, run.folder, run.con)
    except FileNotFoundError:
        if required:
            remedy = "wait for the feed, then run this date again; a range that includes it publishes the other dates"
            partition.error = feed.error(f"{uri} has not landed", remedy, partition.day)
        return None
    except PerennialError as error:
        partition.error = error
        return None
    if required and file.rows == 0:
        partition.error = feed.error(
            f"{uri} holds no rows",
            "ask the feed whether that is correct; a partition without rows is not published",
            partition.day,
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

    A file that cannot be read stops only its partition.

    Args:
        run: the run; errors are recorded in its partitions.
        feed: the files' feed.
        landed: the files.
        suite: expectations of the feed.
        publish: publishes one batch.
    """
    queue = _batches(landed)
    while queue:
        for batch in _validate(run, feed, queue.pop(0), suite):
            try:
                publish(run, batch)
            except UnreadableError as error:
                if len(batch.files) > 1:
                    queue += [[file] for file in batch.files]
                else:
                    _record_read_error(run, feed, batch.files[0], error)


def _record_read_error(run: PartitionRun, feed: FeedSchema, file: LandedFile, error: Exception) -> None:
    delay_days = 0 if feed.kind == "rows" else run.spec.label.arrives_after_days
    day = dates.add_days(file.day, delay_days)
    run.partitions[day].error = landing.translate_read_error(feed, day, file.uri, error)


def _batches(landed: list[LandedFile]) -> list[list[LandedFile]]:
    """Group files that are read together.

    Large files are read separately, so that a range has the same results as single partitions.
    """
    big = [[f] for f in landed if (f.rows or 0) > check_builder.EXACT_QUANTILE_ROWS]
    small = [f for f in landed if (f.rows or 0) <= check_builder.EXACT_QUANTILE_ROWS]
    return [*([small] if small else []), *big]


def _validate(
    run: PartitionRun, feed: FeedSchema, files: list[LandedFile], suite: list[Expectation]
) -> Iterator[ValidatedBatch]:
    """Validate files together, or separately if one of them cannot be read.

    A batch can be read until the next one is requested, which replaces the view.
    """
    spec, is_rows = run.spec, feed.kind == "rows"
    try:
        cast_failures = landing.create_landed_view(run.con, feed, files, feed.kind)
        checks = check_builder.build_checks(
            suite,
            feed.columns,
            spec.data.key,
            spec.data.event_time if is_rows else None,
            cast_failures,
            exact=(files[0].rows or 0) <= check_builder.EXACT_QUANTILE_ROWS,
        )
        # through the module: the benchmarks time this function
        findings = validator.validate(run.con, feed, files, checks, spec.data.quarantine_limit, feed.kind)
        yield ValidatedBatch(feed, files, findings, cast_failures)
    except (duckdb.BinderException, duckdb.ParserException, duckdb.CatalogException):
        raise  # a fault in this library's SQL, not in the file
    except duckdb.Error as error:
        if len(files) > 1:
            for file in files:
                yield from _validate(run, feed, [file], suite)
            return
        _record_read_error(run, feed, files[0], error)
