"""Reference tables: pinned versions stay as they are, and a file that is gone or damaged does no harm."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytest

from perennial.core.errors import DataError
from perennial.features import reference_tables
from perennial.features.engine import FeatureQuery
from perennial.storage import delta_tables, landing
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


def test_a_reference_that_is_replaced_while_it_is_read_is_not_copied(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version in the lake would carry the digest of another file, and never be replaced."""
    spec = make()
    source, real = landing.source_uri(spec.references[0].source), reference_tables.read_file
    new = toys.places().set_column(2, "size", pa.array([7.0] * 4))

    def replaced(path: str, *rest: Any) -> pa.Table:
        toys.write(source, new)
        return real(path, *rest)

    monkeypatch.setattr(reference_tables, "read_file", replaced)
    with pytest.raises(DataError, match="was replaced while it was read"):
        reference_tables.sync_to_lake(spec)
    monkeypatch.setattr(reference_tables, "read_file", real)
    rows = toys.rows("binary", toys.FIRST)
    assert {r["size"] for r in FeatureQuery(spec).compute(rows).to_pylist()} == {7.0}


@pytest.mark.parametrize(
    "name", ["places.parquet", "places.csv", "places.csv.gz", "places.csv.zst", "places.zip"]
)
def test_a_file_is_read_whole_and_a_large_parquet_file_by_its_columns(tmp_path: Path, name: str) -> None:
    path, rows = tmp_path / name, toys.places()
    if name.endswith("zip"):
        with zipfile.ZipFile(path, "w") as archive, archive.open("places.csv", "w") as member:
            pyarrow.csv.write_csv(rows, member)
    elif not name.endswith("parquet"):
        with pa.output_stream(path) as stream:  # compressed by the name
            pyarrow.csv.write_csv(rows, stream)
    else:
        toys.write(str(path), rows)
    assert reference_tables.read_file(str(path))["size"].to_pylist() == rows["size"].to_pylist()
    assert len(reference_tables.read_file(str(path), len(rows))) == len(rows)
    few = reference_tables.read_file(str(path), len(rows) - 1)
    assert few.column_names == rows.column_names
    assert len(few) == (0 if name.endswith("parquet") else len(rows))
    path.write_bytes(path.read_bytes()[:-9])
    if not name.endswith("csv"):
        with pytest.raises((pa.ArrowException, OSError)):
            reference_tables.read_file(str(path))
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


def test_the_types_of_a_reference_table_do_not_change_with_its_values(make: Any) -> None:
    spec = make(
        features={"references": [{"name": "codes", "source": "{landing}/codes.csv"}]},
        sql="SELECT id, x FROM rows",
    )
    (reference,) = spec.references
    file = Path(landing.source_uri(reference.source))
    file.parent.mkdir(parents=True, exist_ok=True)

    def codes(text: str) -> dict[str, list[Any]]:
        file.write_text(text)
        reference_tables.sync_to_lake(spec)
        return dict(lake_copy(reference).to_pydict())

    assert codes("code,size\nA1,1.5\n") == {"code": ["A1"], "size": [1.5]}
    assert codes("code,size\n007,2\n") == {"code": ["007"], "size": [2.0]}
    assert codes("code,size\n008,\n") == {"code": ["008"], "size": [None]}
    with pytest.raises(DataError, match="column 'size' is number in the table, and string in the rows"):
        codes("code,size\n009,big\n")
    assert lake_copy(reference).to_pydict() == {"code": ["008"], "size": [None]}


def lake_copy(reference: Any) -> pa.Table:
    table = delta_tables.open_table(reference_tables.uri(reference))
    assert table is not None
    return table.to_pyarrow_table()


def test_a_folder_of_part_files(make: Any) -> None:
    spec = make()
    path = Path(landing.source_uri(spec.references[0].source))
    path.unlink()
    rows = toys.places()
    for i in range(2):
        toys.write(str(path / f"part-0000{i}-x.snappy.parquet"), rows.slice(2 * i, 2))
    (path / "_temporary").mkdir()
    (path / "_temporary" / "part-00002").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is missing"):
        reference_tables.sync_to_lake(spec)
    (path / "_SUCCESS").touch()
    assert reference_tables.preview(spec.references[0], 100) == rows
    first = reference_tables.sync_to_lake(spec)
    assert reference_tables.sync_to_lake(spec) == first
    days = toys.rows("binary", toys.FIRST)
    assert {r["size"] for r in FeatureQuery(spec).compute(days).to_pylist()} == {1.0, 30.0}
    toys.write(str(path / "part-00002-x.snappy.parquet"), rows.slice(0, 1))
    assert reference_tables.sync_to_lake(spec) != first
