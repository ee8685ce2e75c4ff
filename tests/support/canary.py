"""Values that must appear nowhere, and a search for them in all that a step wrote, printed or raised."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import logging
import struct
import traceback
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

#: A text and a number of a personal column. The text has a character whose encodings differ.
TEXT, NUMBER = "canary.ömber@example.org", 7391864.25
#: Tables of the lake whose rows may hold personal values: what was published, and keys.
TABLES = ("published", "labels", "quarantine", "predictions", "served", "references")


def forms(value: str | float) -> dict[str, bytes]:
    """A value as it could be written, by the name of the form."""
    if isinstance(value, float):
        texts = {f"{value:.{n}g}".encode() for n in (7, 9)} | {repr(value).encode(), f"{value:,}".encode()}
        numbers = {struct.pack(order + size, value) for order in "<>" for size in "fd"}
        return {f"{raw!r}": raw for raw in texts | numbers}
    raw = value.encode()
    found = {
        "UTF-8": raw, "Latin-1": value.encode("latin-1"), "UTF-16": value.encode("utf-16-le"),
        "JSON": json.dumps(value)[1:-1].encode(), "repr": ascii(value)[1:-1].encode(),
        "bytes": repr(raw)[2:-1].encode(), "URL": quote(value).encode(), "hex": raw.hex().encode(),
        "MD5": hashlib.md5(raw).hexdigest().encode(), "SHA-256": hashlib.sha256(raw).hexdigest().encode(),
        "part": value[:9].encode(), "end": value[-13:].encode(),
    }  # fmt: skip
    for shift in range(3):  # base64 of a longer text that begins at any byte
        found[f"base64+{shift}"] = base64.b64encode(b"-" * shift + raw)[4:-4]
    return found


def find(content: bytes, values: Iterable[str | float] = (TEXT, NUMBER)) -> list[str]:
    """The forms of the values that some content contains."""
    return [f"{name} of {value}" for value in values for name, raw in forms(value).items() if raw in content]


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder, except the landing area and `TABLES` of the lake."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        parts = path.relative_to(folder).parts
        if "landing" not in parts and not ("lake" in parts and parts[parts.index("lake") + 1] in TABLES):
            yield path


#: What identifies the content of each file that holds none of the values it was searched for, by path and values. The
#: tests of a process share MLflow's folder, which grows with them.
_CLEAN: dict[tuple[Path, frozenset[str | float]], tuple[int, ...]] = {}


def _search(path: Path, values: frozenset[str | float]) -> None:
    """Assert that a file holds no value; Parquet, gzip and zip files are also searched as what they hold.

    A booster is searched for texts only: its thresholds may be numbers of training rows (docs/models.md).
    """
    if path.suffix == ".ubj":
        values = frozenset(v for v in values if isinstance(v, str))
    stat = path.stat()
    identity = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if _CLEAN.get((path, values)) != identity:
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += "\n".join(map(str, pq.read_table(path).to_pylist())).encode()
        if path.suffix == ".gz":
            content += gzip.decompress(content)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                content += b"".join(archive.read(name) for name in archive.namelist())
        assert not find(content, values), path
        _CLEAN[path, values] = identity


class Watch:
    """Everything that appears while a test runs; the fixture `canary_watch` of a test's folder makes it.

    Args:
        folders: where files are written.
        caplog: of pytest.
        capfd: of pytest.
    """

    def __init__(
        self, folders: list[Path], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self._folders, self._caplog, self._capfd = folders, caplog, capfd
        self._texts: list[str] = []
        caplog.set_level(logging.DEBUG)

    def add(self, outcome: object) -> None:
        """Search what a step returned or raised, too: an exception with its traceback and all that led to it."""
        if isinstance(outcome, BaseException):
            self._texts += ["".join(traceback.format_exception(outcome)), repr(outcome), str(vars(outcome))]
            for cause in (outcome.__cause__, outcome.__context__):
                if cause is not None:
                    self.add(cause)
        else:
            self._texts.append(json.dumps(outcome, default=str, ensure_ascii=False))

    def check(self, values: Iterable[str | float] = (TEXT, NUMBER)) -> int:
        """Assert that no value appeared; returns the number of files that were searched."""
        out, err = self._capfd.readouterr()
        logged = [r.getMessage() + str(r.exc_text or "") + str(r.__dict__) for r in self._caplog.records]
        for text in (out, err, *logged, *self._texts):
            assert not find(text.encode("utf-8", "surrogateescape"), values), text
        files = 0
        for folder in self._folders:
            for path in _files(folder):
                _search(path, frozenset(values))
                files += 1
        return files


def table(rows: int, **columns: object) -> pa.Table:
    """A table of ``rows`` rows whose columns `mail` and `salary` hold the canary in the middle row."""
    middle = rows // 2
    mail = [TEXT if i == middle else f"person{i}@example.org" for i in range(rows)]
    salary = [NUMBER if i == middle else 1000.0 + i for i in range(rows)]
    return pa.table({"mail": mail, "salary": salary} | columns)
