"""What the model was given when it served: the encoded features of a few rows a night, kept on the lake by key.

The training code has to give the same features for the same rows, bit by bit, from the versions of everything that
scoring read: `skew` compares them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perennial.storage import delta_tables

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from perennial.features.scan_units import ScanUnit
    from perennial.spec.model_spec import ModelSpec
    from perennial.storage.delta_tables import File

#: Rows of a night that are logged at most, and half as many at least of a larger night.
MAX_ROWS_PER_PARTITION = 200


def uri(model: str) -> str:
    """The table of logged rows: key, ``features`` as XGBoost was given them, prediction, version, ``scored_from``."""
    return delta_tables.table_uri("served", model)


def inputs_digest(inputs: Mapping[str, Any]) -> str:
    """The digest of what a night was scored from: it ties logged rows to the manifest of that scoring, and no other."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


class LogSampling:
    """Which rows of each night are logged: every n-th, counted through its files, in whatever units they are scored.

    Args:
        nights: the files of each night.
    """

    def __init__(self, nights: Mapping[str, Sequence[File]]) -> None:
        self._begins: dict[str, int] = {}
        self._every: dict[str, int] = {}
        for day, held in nights.items():
            rows = 0
            for file in held:
                self._begins[file.path] = rows
                rows += file.rows
            self._every[day] = max(1, -(-rows // MAX_ROWS_PER_PARTITION))

    def of(self, unit: ScanUnit) -> np.ndarray:
        """The rows to log, by their place in the unit, in order."""
        import numpy as np

        found, at = [], 0
        for day, file in unit.held:
            rows, every = (file.rows if unit.first is None else unit.rows), self._every[day]
            before = self._begins[file.path] + (unit.first or 0)
            found.append(np.arange(-before % every, rows, every) + at)
            at += rows
        return np.concatenate(found)


def to_record_batch(
    keys: pa.RecordBatch, features: np.ndarray, prediction: pa.Array, version: str
) -> pa.RecordBatch:
    """Logged rows of one version.

    Args:
        features: encoded, float32, shape (rows, columns). prediction: shape (rows,).
    """
    import pyarrow as pa

    values = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
    columns = {name: keys.column(name) for name in keys.schema.names}
    columns |= {
        "features": values.cast(pa.list_(pa.float32())),
        "prediction": prediction,
        "model_version": pa.repeat(pa.scalar(version), len(keys)),
    }
    return pa.RecordBatch.from_pydict(columns)


def write(spec: ModelSpec, nights: Mapping[str, Sequence[pa.RecordBatch]], origins: Mapping[str, str]) -> int:
    """Replace nights that follow one another in the table of logged rows; returns the version that holds them."""
    import pyarrow as pa

    parts = []
    for day, batches in nights.items():
        table = pa.Table.from_batches(batches)
        for name, text in (("scored_from", origins[day]), (delta_tables.PARTITION, day)):
            table = table.append_column(name, pa.repeat(pa.scalar(text), len(table)))
        parts.append(table)
    days = sorted(nights)
    # Features hardly repeat in so few rows.
    return delta_tables.replace(
        uri(spec.name), pa.concat_tables(parts), days[0], days[-1], distinct=["features"]
    )
