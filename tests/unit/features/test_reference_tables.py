"""Reference tables: pinned versions stay as they are, and a file that is gone or damaged does no harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytest

from perennial.core.errors import DataError
from perennial.features import reference_tables
from perennial.features.engine import FeatureQuery
from perennial.storage import landing
from support import toys


def test_a_pinned_reference_does_not_move(make: Any) -> None:
    spec, rows = make(), toys.rows("binary", toys.FIRST)
    pinned = reference_tables.sync_to_lake(spec)
    before = FeatureQuery(spec, pinned).compute(rows).to_pylist()
    new = toys.places().set_column(2, "size", pa.array([7.0] * 4))
    toys.write(landing.source_uri(spec.references[0].source), new)
    assert reference_tables.sync_to_lake(spec) != pinned
    assert FeatureQuery(spec, pinned).compute(rows).to_pylist() == before
    assert {r["size"] for r in FeatureQuery(spec).compute(rows).to_pylist()} == {7.0}


def test_a_reference_that_is_gone_or_damaged_leaves_the_last_good_copy_or_says_so(make: Any) -> None:
    spec = make()
    source = Path(landing.source_uri(spec.references[0].source))
    good = source.read_bytes()
    source.write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=r"places: .* cannot be read"):
        FeatureQuery(spec)
    source.unlink()
    with pytest.raises(DataError, match=r"places: .* is missing"):
        FeatureQuery(spec)
    source.write_bytes(good)
    versions = reference_tables.sync_to_lake(spec)
    source.unlink()
    assert reference_tables.sync_to_lake(spec) == versions


@pytest.mark.parametrize("name", ["places.parquet", "places.csv", "places.csv.gz"])
def test_a_file_is_read_whole_and_a_large_parquet_file_by_its_columns(tmp_path: Path, name: str) -> None:
    path, rows = tmp_path / name, toys.places()
    if not name.endswith("parquet"):
        with pa.output_stream(path) as stream:  # compressed by the name
            pyarrow.csv.write_csv(rows, stream)
    else:
        toys.write(str(path), rows)
    assert reference_tables.read_file(str(path))["size"].to_pylist() == rows["size"].to_pylist()
    assert len(reference_tables.read_file(str(path), len(rows))) == len(rows)
    few = reference_tables.read_file(str(path), len(rows) - 1)
    assert few.column_names == rows.column_names
    assert len(few) == (0 if name.endswith("parquet") else len(rows))
    path.write_bytes(b"")
    with pytest.raises((pa.ArrowException, OSError)):
        reference_tables.read_file(str(path))


def test_a_preview_writes_nothing_and_takes_the_lakes_copy_where_no_file_is_there(make: Any) -> None:
    reference = make().references[0]
    source = Path(landing.source_uri(reference.source))
    rows = reference_tables.preview(reference, 100)
    assert rows is not None and rows.equals(toys.places())
    assert not Path(reference_tables.uri(reference)).exists()
    source.unlink()
    assert reference_tables.preview(reference, 100) is None
    reference_tables.sync_to_lake(make())
    source.unlink()
    copy = reference_tables.preview(reference, 3)
    assert copy is not None and copy.equals(toys.places().slice(0, 3))
