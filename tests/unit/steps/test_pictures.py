"""Pictures decide nothing: whatever the values, the step ends, with its manifest and a page."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from perennial.storage import manifests
from support.small_model import DAY

TYPES = {
    "amount": pa.float64(), "count": pa.int64(), "kind": pa.string(), "ok": pa.bool_(), "on": pa.date32(),
    "at": pa.timestamp("us"), "seen": pa.timestamp("us"),
}  # fmt: skip
#: The event time is never missing.
EMPTY: dict[str, list[Any]] = {name: [None] for name in TYPES if name != "at"}
#: Number of rows of a partition, and values of its columns, repeated to these rows; a page takes seconds.
CASES: dict[str, tuple[int, dict[str, list[Any]]]] = {
    "nothing but missing values": (40, EMPTY),
    "one row of missing values": (1, EMPTY),
    "largest numbers": (
        40,
        {
            "amount": [1e308, 1.7976931348623157e308, 1.7976931348623155e308],
            "count": [2**53 + 1, 2**63 - 1, -(2**63)],
            "on": [dt.date(1, 1, 1), dt.date(9999, 12, 31)],
            "seen": [dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31, 23, 59, 59, 999999)],
            "ok": [True],
        },
    ),
    "numbers of opposite sign, and missing ones": (
        40,
        {
            "amount": [None, -1.7976931348623157e308, 1.7976931348623157e308, 5e-324],
            "count": [None, 0],
            "on": [None, dt.date(2020, 3, 1)],
            "seen": [None, dt.datetime(2020, 3, 1)],
            "ok": [None, True, False],
        },
    ),
    "texts": (40, {"kind": [None, "", "é" * 200, "\U0001f600", "\u202e</script>", "\x01"]}),
    "two equal rows": (
        2,
        {"amount": [0.0], "count": [0], "kind": ["a"], "at": [dt.datetime(2020, 3, 1, 23, 59, 59)]},
    ),
}


@pytest.mark.data_profile
@pytest.mark.parametrize("case", CASES)
def test_any_values_are_published_with_a_manifest_and_pages(
    small_model: Any, make_rows: Callable[..., pa.Table], case: str
) -> None:
    rows, values = CASES[case]
    columns = {
        name: pa.array([of_column[i % len(of_column)] for i in range(rows)], TYPES[name])
        for name, of_column in ({"seen": [dt.datetime(2020, 2, 1)]} | values).items()
    }
    small_model.suite, small_model.columns["seen"] = [], "timestamp"
    small_model.land(make_rows(n=rows, **columns))
    assert small_model.run()["rows_out"] == rows
    manifest = manifests.read("small", "data", DAY)
    assert manifest is not None and manifest.rows_out == rows
    content = json.loads(small_model.report(kind="profile", ending="json"))
    for column, reason in content["perennial"]["omitted_columns"].items():
        assert f"<li>{column}: Evidently failed on it" in small_model.report(kind="profile"), reason
    drawn = {m["config"].get("column") for m in content["metrics"]}
    # the preset has no metric of times and long texts
    assert drawn | set(content["perennial"]["omitted_columns"]) >= {"amount", "count", "ok"}
    assert "Partition 2020-03-01" in small_model.report()


@pytest.mark.data_profile
def test_pages_that_cannot_be_stored_hold_back_no_manifest(
    small_model: Any, make_rows: Callable[..., pa.Table]
) -> None:
    for kind in ("profile", "validation"):
        for ending in ("html", "json"):
            (small_model.lake / "reports" / "small" / kind / f"{DAY}.{ending}" / "in the way").mkdir(
                parents=True
            )
    small_model.land(make_rows())
    assert small_model.run()["rows_out"] == 40
    assert small_model.run()["status"] == "unchanged"
