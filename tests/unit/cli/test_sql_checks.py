"""What `perennial check` says of a model's SQL: file, line, and what is certainly wrong or may be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perennial.cli.check import _sql_checks
from perennial.cli.check._sql_checks import Findings
from support import toys

DAY = "2024-01-01"
SIMPLE = {"references": [], "categorical": []}


@pytest.fixture
def check(empty_home: Path, tmp_path: Path) -> Callable[..., Findings]:
    """Checks a toy with some SQL on its landed rows, or on generated ones."""

    def run(sql: str, *, landed: bool = True, features: dict[str, Any] | None = None) -> Findings:
        spec = toys.model(tmp_path / "models", "toy", sql=sql, features=features or SIMPLE)
        rows = toys.rows("binary", DAY)
        if spec.references:
            toys.write(f"{tmp_path}/home/landing/toy_places.parquet", toys.places())
        return _sql_checks.check(spec, rows if landed else None, lambda: rows)

    return run


def test_good_sql_gives_the_names_of_its_features(check: Callable[..., Findings]) -> None:
    findings = check(toys.SQL, features={"categorical": ["k"]})
    assert findings == Findings([], [], ["x", "z", "k", "hour", "size"])


@pytest.mark.parametrize("landed", [True, False])
@pytest.mark.parametrize(
    ("sql", "line", "message"),
    [
        ("SELECT id, x\nFROM rows\nWHERE x > 0", 3, "WHERE leaves rows out"),
        ("SELECT id, x FROM rows\nLIMIT 5", 2, "LIMIT leaves rows out"),
        ("SELECT id, x FROM (\nSELECT id, x FROM rows\nWHERE x > 0)", 3, "WHERE leaves rows out"),
        ("WITH a AS (SELECT id, x FROM rows)\nSELECT id, x FROM a\nWHERE x > 0", 3, "WHERE leaves rows out"),
        ("SELECT id, max(x) AS x FROM rows GROUP BY id\nHAVING max(x) > 0", 2, "HAVING leaves rows out"),
        ("SELECT id,\nlag(x) OVER (ORDER BY id) AS x FROM rows", 2, "lag() OVER reads other rows"),
        ("SELECT id, x\nFROM rows\nQUALIFY row_number() OVER (PARTITION BY id ORDER BY x) = 1", 3, "QUALIFY leaves"),
    ],
)  # fmt: skip
def test_sql_that_loses_or_mixes_rows_is_named_with_its_line(
    check: Callable[..., Findings], sql: str, line: int, message: str, landed: bool
) -> None:
    found = check(sql, landed=landed).problems
    assert ("features.sql", line) == found[0][:2] and message in found[0][2], found


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT id, x FROM rows WHERE x > 0 UNION ALL SELECT id, 0 FROM rows WHERE x <= 0 OR x IS NULL",
        "SELECT id, (SELECT max(i) FROM range(3) t(i) WHERE i < 2) AS x FROM rows",
    ],
    ids=["each row is on one side", "no row of the model is filtered"],
)
def test_filters_that_lose_no_row_are_no_problem(check: Callable[..., Findings], sql: str) -> None:
    assert check(sql).problems == []


def test_an_inner_join_is_a_note_and_a_join_that_repeats_rows_a_problem(
    check: Callable[..., Findings],
) -> None:
    join = "SELECT rows.id, x, size\nFROM rows JOIN places USING (place)"
    findings = check(join, features={"categorical": []})
    assert findings.notes == [
        "features.sql:2: an inner JOIN loses rows without a match; use LEFT JOIN to keep them"
    ]
    # the reference table has two observations of each place
    assert len(findings.problems) == 1 and findings.problems[0][0] == "features.sql"


@pytest.mark.parametrize(
    ("sql", "line", "message"),
    [
        ("SELECT id,\nxx FROM rows", 2, 'Referenced column "xx" not found'),
        ("SELECT id, x\nFROM rows\nJOIN nowhere USING (id)", 3, "nowhere is not a table of this model"),
        ("SELECT id,\n\nrandom() AS x FROM rows", 3, "random is not deterministic"),
        ("SELECT id, x FROM\nrows rows rows", 2, "syntax error"),
    ],
)
def test_sql_that_does_not_bind_or_is_not_allowed_is_named_with_its_line(
    check: Callable[..., Findings], sql: str, line: int, message: str
) -> None:
    findings = check(sql)
    (problem,) = findings.problems
    assert problem[:2] == ("features.sql", line) and message in problem[2], problem
    assert findings.columns == []


def test_without_its_reference_table_the_sql_is_not_bound(empty_home: Path, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", "toy", sql=toys.SQL.replace("hour(", "no_such_hour("))
    findings = _sql_checks.check(spec, None, lambda: toys.rows("binary", DAY))
    assert "no_such_hour() is not one of the functions" in findings.problems[0][2]
    spec = toys.model(tmp_path / "models", "toy")
    findings = _sql_checks.check(spec, None, lambda: toys.rows("binary", DAY))
    assert findings.problems == [] and findings.columns == []
    assert findings.notes[-1] == "features.sql was not bound: reference table places has not landed"


def test_the_file_of_a_feature_set_is_named(empty_home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "sums"
    folder.mkdir(parents=True)
    (folder / "feature_set.yaml").write_text("name: sums\nowner: tests\ndescription: A sum.\n")
    (folder / "features.sql").write_text("SELECT *,\nx + nothing AS total FROM rows")
    features = SIMPLE | {"sets": ["sums"]}
    spec = toys.model(tmp_path / "models", "toy", sql="SELECT id, total FROM rows", features=features)
    (problem,) = _sql_checks.check(spec, None, lambda: toys.rows("binary", DAY)).problems
    assert problem[:2] == ("sums/features.sql", 2) and "nothing" in problem[2]
