"""The keys whose rows are to be erased, as people name them, and the request that is made of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from perennial.core.errors import PerennialError
from perennial.ingestion import erasure_requests
from perennial.ingestion.erasure_requests import ErasureRequest
from perennial.spec.model_spec import ModelSpec


def request_erasure(spec: ModelSpec, keys: Sequence[Mapping[str, str]], requested_by: str) -> ErasureRequest:
    """Make the request to erase the rows of some keys, which stores hashes of them.

    Args:
        spec: the model.
        keys: the keys, each as text by column of the rows; all of the same columns.
        requested_by: who asks for it.

    Raises:
        PerennialError: there are no keys, or a column is none of the rows.
        DataError: a value cannot be read as the type of its column.
    """
    columns = list(dict.fromkeys(column for key in keys for column in key))
    unknown = [column for column in columns if column not in spec.data.columns]
    if not columns or unknown or any(set(key) != set(columns) for key in keys):
        raise PerennialError(
            f"{unknown[0]!r} is no column of the rows"
            if unknown
            else "the keys do not name the same columns",
            f"name one or more of: {', '.join(spec.data.columns)}",
            model=spec.name,
        )
    kinds = {column: spec.data.columns[column] for column in columns}
    return erasure_requests.make(spec.name, kinds, keys, requested_by)


def read_keys(path: Path | None, lines: Iterable[str] = ()) -> list[dict[str, str]]:
    """Read keys from a CSV file whose first line names the columns.

    Args:
        path: the file; None for ``lines``.
        lines: its lines.

    Raises:
        PerennialError: it cannot be read, or a line has another number of cells.
    """
    try:
        content = (
            path.read_text("utf-8-sig").splitlines() if path else [line.rstrip("\r\n") for line in lines]
        )
    except (OSError, UnicodeDecodeError) as error:
        raise PerennialError(f"{path} cannot be read: {type(error).__name__}", "name a CSV file") from None
    names, *rows = [*csv.reader(line for line in content if line.strip())] or [[]]
    for number, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise PerennialError(
                f"line {number} of the keys has {len(row)} cells, the first has {len(names)}",
                "correct the file",
            )
    return [dict(zip(names, row, strict=True)) for row in rows]
