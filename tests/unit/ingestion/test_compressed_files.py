"""Compressed text is published whole, or not at all."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable

import pyarrow as pa
import pytest

from perennial.core.errors import DataError
from perennial.spec.constraints import check_template
from support.small_model import DAY, SmallModel, rows

#: What `zstd` writes of "id,at,amount\n1,2020-03-01,2.5\n": the last four bytes are a checksum, which Arrow omits.
WITH_CHECKSUM = bytes.fromhex(
    "28b52ffd0458f1000069642c61742c616d6f756e740a312c323032302d30332d30312c322e350ad4bcde19"
)


def text(day: str = DAY) -> bytes:
    table = rows(day)
    lines = [",".join(table.column_names), *(",".join(map(str, row.values())) for row in table.to_pylist())]
    return ("\n".join(lines) + "\n").encode()


def zipped(content: bytes, *names: str, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name in names or ("rows.csv",):
            archive.writestr(name, b"" if name.endswith("/") else content)
    return file.getvalue()


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "csv.gz": gzip.compress,
    "csv.zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
    "csv.zip": zipped,
    "zip": lambda content: zipped(content, "a/", "a/rows.txt", "__MACOSX/a/._rows.txt", method=zipfile.ZIP_STORED),
}  # fmt: skip


def land(model: SmallModel, content: bytes, ending: str) -> None:
    model.changes = {"source": f"{{landing}}/rows/{{date}}.{ending}"}
    model.land(content, ending=ending)


@pytest.mark.parametrize("ending", COMPRESSED)
def test_compressed_text_is_published(small_model: SmallModel, ending: str) -> None:
    check_template(f"{{landing}}/{{date}}.{ending}", dated=True)
    land(small_model, COMPRESSED[ending](text()), ending)
    assert small_model.run()["rows_out"] == 40


def refused(model: SmallModel, content: bytes, ending: str, match: str) -> None:
    land(model, content, ending)
    with pytest.raises(DataError, match=rf"{DAY}\.{ending} is not readable text: the \w+ file .*{match}"):
        model.run()
    assert not model.table()


@pytest.mark.parametrize("cut", [1, 9, 200])
@pytest.mark.parametrize("ending", COMPRESSED)
def test_a_file_that_is_cut_is_refused(small_model: SmallModel, ending: str, cut: int) -> None:
    refused(small_model, COMPRESSED[ending](text())[:-cut], ending, "is damaged")


@pytest.mark.parametrize("ending", COMPRESSED)
def test_a_file_that_is_not_compressed_is_refused(small_model: SmallModel, ending: str) -> None:
    refused(small_model, text(), ending, "is damaged")


def test_a_wrong_checksum_is_refused(small_model: SmallModel) -> None:
    content = text()
    refused(small_model, gzip.compress(content)[:-8] + b"abcdefgh", "csv.gz", "CRC check failed")
    stored = zipped(content, method=zipfile.ZIP_STORED).replace(b"+49 170", b"+49 171", 1)
    refused(small_model, stored, "zip", "Bad CRC-32")
    refused(small_model, WITH_CHECKSUM[:-1] + b"x", "csv.zst", "checksum")


def test_several_files_in_one_are_refused_by_name(small_model: SmallModel) -> None:
    refused(small_model, zipped(text(), "a.csv", "b.csv"), "zip", r"holds 2 files, not one: a\.csv, b\.csv")
    refused(small_model, zipped(text(), "a/"), "zip", "holds 0 files, not one")
    refused(small_model, zipped(text(), "a.parquet"), "zip", r"holds a\.parquet, no text")


def test_several_gzip_members_are_one_text(small_model: SmallModel) -> None:
    content = text()
    land(small_model, gzip.compress(content[:777]) + gzip.compress(content[777:]), "csv.gz")
    assert small_model.run()["rows_out"] == 40
