"""The rows of a partition that are in quarantine, with the reasons; columns of personal data are hidden."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from perennial.core.errors import DataError
from perennial.core.sql import HIDDEN_VALUE, quote_identifier
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session

#: Rows that a page shows, and the most that a download has.
SHOWN_ROWS, MAX_ROWS = 200, 100_000
#: Characters that a spreadsheet reads as the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class QuarantinedRow:
    """One row, or label, or stopped partition.

    Attributes:
        feed: ``rows``, ``labels`` or ``partition``.
        key: values of the key, by column.
        values: cells by column, as the feed had them; empty for a stopped partition.
        reasons: why it is here.
    """

    feed: str
    key: dict[str, str]
    values: dict[str, str]
    reasons: list[str]


@dataclass(frozen=True)
class Quarantine:
    """The quarantine of a partition.

    Attributes:
        partition: its key.
        total: number of rows.
        rows: the rows that were read.
        reasons: number of rows by reason, most frequent first; of the rows that were read.
        columns: columns of the cells, in the feed's order, the key's first.
    """

    partition: str
    total: int
    rows: list[QuarantinedRow]
    reasons: dict[str, int]
    columns: list[str]


def read(spec: ModelSpec, partition: str, limit: int = SHOWN_ROWS) -> Quarantine:
    """Read the quarantine of a partition.

    Args:
        spec: the model.
        partition: its key.
        limit: rows at most.

    Raises:
        PerennialError: this is no partition of the model.
        StorageError: the lake cannot be read.
    """
    spec.cadence.parse(partition)
    name = spec.lake_column
    columns = [name(column) for column in ("feed", "row_values", "reasons")]
    keys = spec.data.key
    with duckdb_session.connect(threads=1) as con:
        uri = delta_tables.table_uri("quarantine", spec.name)
        if not duckdb_session.create_view(con, "__quarantine", uri, None, partition, partition):
            return Quarantine(partition, 0, [], {}, [])
        total = con.sql("SELECT count(*) FROM __quarantine").fetchall()[0][0]
        selected = ", ".join(quote_identifier(c) for c in (*columns, *keys))
        stored = con.sql(f"SELECT {selected} FROM __quarantine LIMIT {int(limit)}").fetchall()
    rows = [_row(spec, cells) for cells in stored]
    counts = Counter(reason for row in rows for reason in row.reasons)
    present = dict.fromkeys(column for row in rows for column in row.values)
    shown = dict.fromkeys([*keys, *present])
    return Quarantine(partition, total, rows, dict(counts.most_common()), list(shown))


def partitions(spec: ModelSpec) -> list[str]:
    """Partitions that have rows in quarantine, in order.

    Raises:
        StorageError: the lake cannot be read.
    """
    return delta_tables.partitions(delta_tables.table_uri("quarantine", spec.name))


def to_csv(quarantine: Quarantine) -> Iterator[str]:
    """The rows as lines of a CSV file: feed, reasons, cells. A cell that a spreadsheet would compute begins with '."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["feed", "reasons", *map(without_formula, quarantine.columns)])
    for row in quarantine.rows:
        cells = [{**row.key, **row.values}.get(column, "") for column in quarantine.columns]
        writer.writerow([row.feed, *map(without_formula, ("; ".join(row.reasons), *cells))])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def _row(spec: ModelSpec, cells: tuple[Any, ...]) -> QuarantinedRow:
    feed, values, reasons, *key = cells
    hidden = set(spec.personal_columns)
    try:
        parsed = json.loads(values) if values else {}
    except ValueError as error:
        raise DataError(
            "a row in quarantine cannot be read", "publish the partition again with force", model=spec.name
        ) from error

    def shown(column: str, value: Any) -> str:
        if value is None:
            return ""
        return HIDDEN_VALUE if column in hidden else str(value)

    return QuarantinedRow(
        feed=str(feed),
        key={column: shown(column, value) for column, value in zip(spec.data.key, key, strict=True)},
        values={column: shown(column, value) for column, value in parsed.items()},
        reasons=[str(reason) for reason in reasons or ()],
    )


def without_formula(cell: str) -> str:
    """The text of a cell, with a leading ' if a spreadsheet would compute it."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
