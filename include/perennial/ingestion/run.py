"""One call of the data step: files that are landed, validated and published together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.core import dates
from perennial.core.errors import PerennialError
from perennial.spec.model_spec import ModelSpec
from perennial.storage import manifests

if TYPE_CHECKING:
    import duckdb

    from perennial.storage.landing import FeedSchema, LandedFile
    from perennial.validation.checks import Check
    from perennial.validation.suite import Expectation
    from perennial.validation.validator import ValidationFindings


STEP = "data"


REMEDY = "read the data doc, mend the feed (or the expectation), then run this date again"


@dataclass
class PartitionState:
    """One partition date on its way through the step."""

    day: str
    inputs: dict[str, Any]
    rows_in: int = 0
    rows_out: int = 0
    quarantined: int = 0
    labels: int = 0
    label_date: str = ""
    label_state: str = ""
    labels_quarantined: int = 0
    doc: str = ""
    error: PerennialError | None = None


@dataclass
class PartitionRun:
    """What the parts of one call share."""

    spec: ModelSpec
    con: duckdb.DuckDBPyConnection
    folder: Path
    run_id: str
    nights: dict[str, PartitionState]
    versions: dict[str, int] = field(default_factory=dict)

    def good(self) -> list[PartitionState]:
        """Nights that nothing has stopped so far."""
        return [n for n in self.nights.values() if n.error is None]


def labelled_rows_digest(spec: ModelSpec, day: str, nights: dict[str, PartitionState]) -> str | None:
    """The rows that the labels of one night are matched with, by the digest of their file; none: there are none."""
    label_day = dates.add_days(day, -spec.label.arrives_after_days)
    if label_day in nights and nights[label_day].error is None:
        return str(nights[label_day].inputs["source"])
    found = manifests.read(spec.name, STEP, label_day) if label_day != day else None
    return found.inputs["source"] if found else None


def validate_and_publish(
    work: PartitionRun, feed: FeedSchema, landed: list[LandedFile], suite: list[Expectation],
    publish: Callable[[PartitionRun, FeedSchema, list[LandedFile], ValidationFindings, dict[str, str]], None],
) -> None:  # fmt: skip
    """Validate files and publish them, together as far as may be; a file that cannot be read stops its night alone."""
    from perennial.ingestion.publishing import UnreadableError

    queue = _batches(landed)
    while queue:
        for part, findings, unread in _validate(work, feed, queue.pop(0), suite):
            try:
                publish(work, feed, part, findings, unread)
            except UnreadableError as error:
                if len(part) > 1:
                    queue += [[file] for file in part]
                else:
                    _unreadable(work, feed, part[0], error)


def _unreadable(work: PartitionRun, feed: FeedSchema, file: LandedFile, error: Exception) -> None:
    from perennial.storage.landing import read_error

    late = 0 if feed.what == "rows" else work.spec.label.arrives_after_days
    day = dates.add_days(file.day, late)
    work.nights[day].error = read_error(feed, day, file.uri, error)


def land_file(
    work: PartitionRun, night: PartitionState, feed: FeedSchema, uri: str, *, required: bool
) -> LandedFile | None:
    from perennial.storage.landing import fetch_file

    try:
        file = fetch_file(feed, night.day if required else night.label_date, uri, work.folder, work.con)
    except FileNotFoundError:
        if required:
            remedy = "wait for the feed, then run this date again; a range over it publishes the other dates"
            night.error = feed.error(f"{uri} has not landed", remedy, night.day)
        return None
    except PerennialError as error:
        night.error = error
        return None
    if required and file.rows == 0:
        night.error = feed.error(f"{uri} holds no rows", "ask the feed whether that is so; a partition without rows is "
                                 "not published", night.day)  # fmt: skip
        return None
    return file


def _batches(landed: list[LandedFile]) -> list[list[LandedFile]]:
    """Files that are read together: all, but big ones by themselves, so that a range judges as its nights would."""
    from perennial.validation.checks import EXACT_QUANTILE_ROWS

    big = [[f] for f in landed if (f.rows or 0) > EXACT_QUANTILE_ROWS]
    small = [f for f in landed if (f.rows or 0) <= EXACT_QUANTILE_ROWS]
    return [*([small] if small else []), *big]


def _validate(
    work: PartitionRun, feed: FeedSchema, batch: list[LandedFile], suite: list[Expectation]
) -> Iterator[tuple[list[LandedFile], ValidationFindings, dict[str, str]]]:
    """Validate files together; where one is malformed, one by one, so that it is found.

    What it yields can be read until the next is asked for: the view is then another one.
    """
    import duckdb

    from perennial.storage.landing import create_landed_view
    from perennial.validation.checks import EXACT_QUANTILE_ROWS, build_checks
    from perennial.validation.validator import validate

    spec, rows = work.spec, feed.what == "rows"
    try:
        unread = create_landed_view(work.con, feed, batch, feed.what)
        exact = (batch[0].rows or 0) <= EXACT_QUANTILE_ROWS
        found: list[Check] = build_checks(
            suite, feed.columns, spec.data.key, spec.data.event_time if rows else None, unread, exact
        )
        yield batch, validate(work.con, feed, batch, found, spec.data.quarantine_limit, feed.what), unread
    except (duckdb.BinderException, duckdb.ParserException, duckdb.CatalogException):
        raise  # a defect of ours, not of the file
    except duckdb.Error as error:
        if len(batch) > 1:
            for file in batch:
                yield from _validate(work, feed, [file], suite)
            return
        _unreadable(work, feed, batch[0], error)
