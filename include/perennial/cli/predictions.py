"""The command ``perennial predictions``: print the predictions of some partitions, or export them to a file.

Rows are streamed, in bounded memory. The columns are the partition, the key under its own names, the prediction and the
version that made it; of a multiclass model also the probability of the predicted class.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from rich.text import Text

from perennial.cli import terminal
from perennial.core.errors import DataError, PerennialError
from perennial.core.partitions import PartitionRange
from perennial.features import scan_units
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, leftovers, object_store, storage_errors
from perennial.storage.delta_tables import PARTITION, File

__all__ = ["SHOWN_ROWS", "show"]

#: Rows that are printed unless another number is given.
SHOWN_ROWS = 20
#: Rows that are read at a time.
CHUNK_ROWS = 100_000
#: Ranges of dates that a message lists.
MAX_RANGES = 5
#: What a prediction is, by task.
MEANING = {
    "binary": "prediction: the probability of the positive class",
    "multiclass": "prediction: the most probable class; probability: that of this class",
    "regression": "prediction: the predicted number",
    "ranking": "prediction: the score by which the rows of a list are ranked, highest first",
}


@dataclass(frozen=True)
class _Selection:
    """Partitions with predictions.

    Attributes:
        spec: the model.
        files: the files of each partition, by date, in order.
        missing: dates of the range that are published and not scored.
    """

    spec: ModelSpec
    files: dict[str, list[File]]
    missing: list[str]

    @property
    def rows(self) -> int:
        """The number of predictions."""
        return sum(file.rows for files in self.files.values() for file in files)


def show(
    spec: ModelSpec,
    *,
    day: str | None = None,
    start: str | None = None,
    end: str | None = None,
    limit: int | None = None,
    out: Path | None = None,
) -> None:
    """Print predictions, or write them to a file.

    Args:
        spec: the model.
        day: partition date; the latest one with predictions if neither ``start`` nor ``end`` is given.
        start: first partition date of a range; that of the predictions when not given.
        end: last partition date of a range; that of the predictions when not given.
        limit: rows at most; by default all for a file, and `SHOWN_ROWS` for the terminal.
        out: file to write, ``.csv`` or ``.parquet``.

    Raises:
        PerennialError: there are no such predictions; an option cannot be used; the file cannot be written.
    """
    if day is not None and (start is not None or end is not None):
        raise PerennialError(
            "--date is one partition, --start and --end are a range", "give one or the other"
        )
    if limit is not None and limit < 1:
        raise PerennialError(f"--limit is {limit}", "give a number from 1")
    write = _writer(out) if out is not None else None
    selection = _select(spec, day, start, end)
    if out is not None and write is not None:
        count = write(_chunks(selection, limit))
        terminal.console().print(Text(f"{count:,} predictions written to {out}"))
    else:
        _print(selection, limit or SHOWN_ROWS)
    if selection.missing:
        span = spec.cadence.range(selection.missing[0], selection.missing[-1])
        terminal.console().print(
            Text(
                f"Published and not scored: {_ranges(spec, selection.missing)}. To score: {_command(spec, span)}"
            )
        )


def _select(spec: ModelSpec, day: str | None, start: str | None, end: str | None) -> _Selection:
    """Find the partitions of a range that have predictions.

    Raises:
        PerennialError: a date is none, or the range ends before it starts.
        DataError: there are no predictions.
    """
    for name, text in (("--date", day), ("--start", start), ("--end", end)):
        if text is not None:
            spec.cadence.parse(text, name)
    if start and end:
        spec.cadence.range(start, end)
    scored = delta_tables.files_by_partition(delta_tables.table_uri("predictions", spec.name))
    if day is None and start is None and end is None and scored:
        day = max(scored)
    first, last = (day, day) if day else (start or "", end or "~")
    files = {key: listed for key, listed in scored.items() if first <= key <= last}
    published = delta_tables.partitions(delta_tables.table_uri("published", spec.name))
    due = [key for key in published if first <= key <= last and key not in scored]
    if not files:
        raise _nothing(
            spec, day or f"{start or 'the first'}..{end or 'the latest'}", due, list(scored), published
        )
    if day is None:
        # A range without a bound is that of the predictions.
        due = [key for key in due if (start or min(files)) <= key <= (end or max(files))]
    return _Selection(spec, files, due)


def _nothing(
    spec: ModelSpec, wanted: str, due: list[str], scored: list[str], published: list[str]
) -> DataError:
    """The error that there are no predictions of the partitions that were asked for."""
    have = f"; there are predictions of {_ranges(spec, scored)}" if scored else "; no partition is scored yet"
    if due:
        remedy = f"score them: {_command(spec, spec.cadence.range(due[0], due[-1]))}"
        if not scored:
            remedy += "; that needs a champion: `perennial run train` and `perennial run promote` make one"
    elif published:
        remedy = (
            f"give a date of these, or publish that partition first: published are {_ranges(spec, published)}"
        )
    else:
        remedy = f"publish, train, promote and score first; `perennial missing {spec.name}` lists what is due"
    return DataError(f"there are no predictions of {wanted}{have}", remedy, model=spec.name)


def _command(spec: ModelSpec, span: PartitionRange) -> str:
    end = "" if span.start == span.end else f" --end {span.end}"
    return f"perennial run score --model {spec.name} --start {span.start}{end}"


def _ranges(spec: ModelSpec, days: list[str]) -> str:
    """Dates as ranges, the latest ones if there are many."""
    spans = [span.compact for span in spec.cadence.contiguous_ranges(days)]
    more = f"{len(spans) - MAX_RANGES} earlier ranges, " if len(spans) > MAX_RANGES else ""
    return more + ", ".join(spans[-MAX_RANGES:])


def _chunks(selection: _Selection, limit: int | None) -> Iterator[pa.Table]:
    """The predictions in order, in tables of at most `CHUNK_ROWS` rows; at least one, for the columns."""
    left = selection.rows if limit is None else limit
    spec, first = selection.spec, True
    stored = [*spec.data.key, *map(spec.lake_column, ("prediction", "probabilities", "model_version"))]
    for day, files in selection.files.items():
        for unit in scan_units.plan_units({day: files}, CHUNK_ROWS, CHUNK_ROWS):
            if left <= 0 and not first:
                return
            rows = _columns(spec, unit.read(stored), day).slice(0, left)
            left, first = left - len(rows), False
            yield rows


def _columns(spec: ModelSpec, rows: pa.Table, day: str) -> pa.Table:
    """The columns that are shown of rows of one partition."""
    prediction, probabilities, version = map(
        spec.lake_column, ("prediction", "probabilities", "model_version")
    )
    if absent := [name for name in (*spec.data.key, prediction, version) if name not in rows.column_names]:
        raise DataError(
            f"the predictions have no column {absent[0]!r}: they were made for another key",
            f"`perennial check {spec.name}` says how to score these rows again",
            model=spec.name,
            partition=day,
        )
    columns: dict[str, Any] = {PARTITION: pa.repeat(pa.scalar(day), len(rows))}
    columns |= {key: rows.column(key) for key in spec.data.key}
    columns[prediction] = rows.column(prediction)
    if probabilities in rows.column_names:
        columns[spec.lake_column("probability")] = _largest(rows.column(probabilities).combine_chunks())
    columns[version] = rows.column(version)
    return pa.table({name: _plain(column) for name, column in columns.items()})


def _largest(lists: Any) -> Any:
    """The largest number of each list, of which none is empty."""
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return pa.array(np.maximum.reduceat(values, starts) if len(values) else values, pa.float32())


def _plain(column: Any) -> Any:
    """A column without a dictionary, so that all chunks have one type."""
    return pc.cast(column, column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _print(selection: _Selection, limit: int) -> None:
    spec, shown = selection.spec, 0
    table = None
    for chunk in _chunks(selection, limit):
        numbers = [
            f.name for f in chunk.schema if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)
        ]
        table = table or terminal.table(*map(_escape, chunk.column_names), right=[*map(_escape, numbers)])
        for row in zip(*(column.to_pylist() for column in chunk.columns), strict=True):
            table.add_row(*(Text(_text(value)) for value in row))
        shown += len(chunk)
    console = terminal.console()
    console.print(table)
    more = (
        "" if shown == selection.rows else "; --limit shows more, --out FILE.csv or FILE.parquet writes all"
    )
    console.print(
        Text(
            f"{shown:,} of {selection.rows:,} predictions of {_ranges(selection.spec, list(selection.files))}{more}"
        )
    )
    console.print(Text(MEANING[spec.task]))


def _escape(name: str) -> str:
    """A column's name as a title, in which Rich would read brackets as markup."""
    return name.replace("[", "\\[")


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _writer(out: Path) -> Callable[[Iterator[pa.Table]], int]:
    """The function that writes predictions to a file; what it replaces is complete, or stays as it was.

    Raises:
        PerennialError: the file cannot be one of predictions.
    """
    if object_store.is_remote(str(out).replace("s3:/", "s3://")):
        raise PerennialError(f"--out is {out}: files are written to this machine only", "give a local path")
    suffix = out.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise PerennialError(f"--out is {out}: neither .csv nor .parquet", "name the file .csv or .parquet")
    if not out.absolute().parent.is_dir() or out.is_dir():
        what = "is a folder" if out.is_dir() else "is in a folder that does not exist"
        raise PerennialError(f"--out is {out}, which {what}", "give the path of a file in an existing folder")

    def write(chunks: Iterator[pa.Table]) -> int:
        folder = out.absolute().parent
        with (
            storage_errors.writing(str(out)),
            leftovers.temporary_folder(".predictions-", folder) as staging,
        ):
            count = _write(chunks, staging / out.name, suffix)
            (staging / out.name).replace(out)
        return count

    return write


def _write(chunks: Iterator[pa.Table], path: Path, suffix: str) -> int:
    """Write predictions to a new file; returns their number."""
    count = 0
    with contextlib.ExitStack() as stack:
        writer: Any = None
        for chunk in chunks:
            if writer is None:
                writer = stack.enter_context(
                    pq.ParquetWriter(path, chunk.schema)
                    if suffix == ".parquet"
                    else pyarrow.csv.CSVWriter(path, chunk.schema)
                )
            writer.write_table(chunk.cast(writer.schema) if suffix == ".parquet" else chunk)
            count += len(chunk)
    return count
