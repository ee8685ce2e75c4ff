"""What SQL reads, for a column whose type has changed."""

from __future__ import annotations

import pytest

from perennial.spec import spec_changes
from perennial.spec.model_spec import ModelSpec

COLUMNS = {
    "id": "string",
    "at": "timestamp",
    "day": "string",
    "holiday": "integer",
    "x": "number",
    'a"b': "integer",
}


def spec(sql: str, **types: str) -> ModelSpec:
    made = ModelSpec.model_validate({
        "name": "toy", "task": "binary", "owner": "tests", "description": "A toy.",
        "data": {"source": "{landing}/{date}.parquet", "key": ["id"], "event_time": "at", "columns": COLUMNS | types},
        "label": {"source": "{landing}/y/{date}.parquet", "columns": {"id": "string", "y": "integer"},
                  "expression": "y", "arrives_after": "1 day"},
        "schedule": {"start": "2024-01-01"},
    })  # fmt: skip
    made._sql = sql
    return made


@pytest.mark.parametrize(
    ("sql", "reads"),
    [
        ("SELECT id, day FROM rows", True),
        ("SELECT id, DAY FROM rows", True),
        ('SELECT id, "day" FROM rows', True),
        ("SELECT id, rows.day AS d FROM rows", True),
        ("SELECT id, holiday FROM rows", False),
        ("SELECT id, day_of_week(at) AS d FROM rows", False),
        ("SELECT id, x FROM rows -- not by day", False),
        ("SELECT id, x FROM rows /* neither * nor day */", False),
        ("SELECT id, x || 'day * of' AS d FROM rows", False),
        ("SELECT * FROM rows", True),
        ("SELECT rows.*, 1 AS one FROM rows", True),
        ("SELECT * EXCLUDE (x) FROM rows", True),
        ("SELECT DISTINCT * FROM rows", True),
        ("SELECT id, COLUMNS(*) FROM rows", True),
        ("WITH r AS (SELECT * FROM rows) SELECT id, x FROM r", True),
        ("FROM rows", True),
        ("WITH r AS (FROM rows) SELECT id, x FROM r", True),
        ("SELECT id, count(*) AS n FROM rows GROUP BY id", False),
        ("SELECT id, COUNT ( * ) AS n FROM rows GROUP BY id", False),
        ("SELECT id, x * 2 AS twice, (x)*x AS square FROM rows", False),
        ("SELECT id, x IS DISTINCT FROM 1 AS other, extract(hour FROM at) AS h FROM rows", False),
    ],
)
def test_a_version_reads_the_columns_that_its_sql_names_or_selects(sql: str, reads: bool) -> None:
    difference = spec_changes.prediction_difference(spec(sql), spec(sql, day="date"))
    assert ("column 'day' was string" in difference) is reads


def test_a_name_with_a_quote_is_found() -> None:
    sql = 'SELECT id, "a""b" FROM rows'
    assert "was integer" in spec_changes.prediction_difference(spec(sql), spec(sql, **{'a"b': "string"}))
