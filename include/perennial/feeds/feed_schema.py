"""The columns that the files of a feed must have, and the errors about such files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from perennial.core.errors import DataError, PerennialError, StorageError
from perennial.core.partitions import DAILY, Cadence
from perennial.core.redaction import error_text
from perennial.feeds.text_casts import TextFormat


@dataclass
class FeedSchema:
    """The columns that the files of one feed must have.

    Attributes:
        model: name of the model that the feed belongs to.
        kind: ``rows`` or ``labels``.
        columns: declared type of each column.
        extra_columns: ``ignore`` columns that are not declared, or ``stop`` the partition.
        personal: columns of personal data, whose values no message may show.
        hides_values: no message may quote the file: which cell a fault belongs to is not known before it is parsed.
        row_number: one of ``columns`` that the files do not have: the number of a row in its file, from 1.
        text_format: how text files, and text cells of other files, are written.
        cadence: of its partitions.
    """

    model: str
    kind: str
    columns: Mapping[str, str]
    extra_columns: str = "ignore"
    personal: list[str] = field(default_factory=list)
    hides_values: bool = False
    row_number: str | None = None
    text_format: TextFormat = field(default_factory=TextFormat)
    cadence: Cadence = DAILY

    def error(self, cause: str, remedy: str, day: str) -> DataError:
        """Create the error that stops one partition of this feed."""
        return DataError(cause, remedy, model=self.model, partition=day)


def translate_read_error(
    feed: FeedSchema, day: str, uri: str, error: Exception, problem: str = "cannot be read to its end"
) -> PerennialError:
    """Translate DuckDB's error on a file to a `StorageError` (this machine) or a `DataError` (the file).

    Args:
        feed: the file's feed.
        day: partition date that the error stops.
        uri: where the file landed.
        error: what DuckDB raised.
        problem: what is wrong with the file, if the file is the cause.
    """
    text = str(error)
    if "Out of Memory" in text:
        return StorageError(f"{uri}: there is not enough memory to read it: {shortened_error(feed, error)}",
                            "raise PERENNIAL_MEMORY_MB, or lower PERENNIAL_THREADS; then run it again",
                            model=feed.model, partition=day)  # fmt: skip
    if "No space left" in text or "max_temp_directory_size" in text:
        return StorageError(f"{uri}: the disk of the working folder is full", "free some disk space, then run it "
                            "again: nothing was published", model=feed.model, partition=day)  # fmt: skip
    return feed.error(
        f"{uri} {problem}: {shortened_error(feed, error)}", "ask the feed to deliver it again", day
    )


def shortened_error(feed: FeedSchema, error: Exception) -> str:
    """A library's error as one line without the row that DuckDB quotes, or any value that may be personal."""
    if feed.hides_values:
        return error_text(error, hide=True, names=feed.columns)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    quoting = ("Original Line", "Possible", "*", "file", "CSV Options")
    return " ".join([line for line in lines if not line.startswith(quoting)][:2])[:300]
