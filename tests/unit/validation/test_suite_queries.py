"""Queries of authors, LIKE patterns, and checks that Great Expectations itself runs on the rows."""

from __future__ import annotations

import json
import logging
import sqlite3
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.feeds.feed_schema import FeedSchema
from perennial.ingestion.suite_queries import query_problems
from perennial.ingestion.typed_rows import create_landed_view
from perennial.storage import duckdb_session
from perennial.storage.landing import fetch_file
from perennial.validation import _extension, _gx_engine, dry_run
from perennial.validation.check_builder import build_checks
from perennial.validation.gx_evaluator import ValidationOutcome
from perennial.validation.suite import Expectation, parse_suite
from perennial.validation.validator import ValidationFindings, validate

COLUMNS = {"id": "integer", "part": "string", "n": "number", "s": "string", "j": "string"}
KEY = ["id", "part"]
ROWS = {
    "id": [1, 2, 3, 4, 5, None],
    "part": ["a", "a", "b", "b", "c", "c"],
    "n": [1.0, 2.0, None, 9.0, 5.0, 3.0],
    "s": ["ab", "a%b", None, "a_b", "xb", "b"],
    "j": ['{"a": 1}', "[]", None, '{"a": "x"}', "1", "{}"],
}
QUERY = "unexpected_rows_expectation"
LIKE = "expect_column_values_to_match_like_pattern"
NOT_LIKE = "expect_column_values_to_not_match_like_pattern"


def expectations(*entries: dict[str, Any]) -> list[Expectation]:
    suite, problems = parse_suite(json.dumps({"name": "s", "expectations": list(entries)}), COLUMNS)
    assert not problems
    assert not query_problems(suite, COLUMNS)
    return suite


def query(sql: str, **entry: Any) -> dict[str, Any]:
    return {"type": QUERY, "kwargs": {"unexpected_rows_query": sql}, "description": "d", **entry}


def run(
    folder: Path,
    *entries: dict[str, Any],
    files: tuple[dict[str, Any], ...] = (ROWS,),
    personal: tuple[str, ...] = (),
) -> tuple[ValidationFindings, list[Any]]:
    """The findings, and file and row of each bad row."""
    feed = FeedSchema("m", "rows", COLUMNS, personal=list(personal), hides_values=bool(personal))
    con, landed = duckdb_session.connect(threads=2), []
    for i, rows in enumerate(files):
        path = folder / f"2020-01-0{i + 1}.parquet"
        types = {"id": pa.int64(), "n": pa.float64()}
        pq.write_table(
            pa.table({c: pa.array(values, types.get(c, pa.string())) for c, values in rows.items()}), path
        )
        landed.append(fetch_file(feed, path.stem, str(path), folder, con))
    create_landed_view(con, feed, landed)
    duckdb_session.lock(con, [str(file.path) for file in landed])
    findings = validate(con, feed, landed, build_checks(expectations(*entries), COLUMNS, KEY), 1.0)
    bad = con.execute(
        f"SELECT __file, __row FROM {findings.source} WHERE ({findings.bad}) ORDER BY ALL"
    ).fetchall()
    return findings, bad


def outcome(findings: ValidationFindings) -> ValidationOutcome:
    return findings.outcomes[0]


#: The row without a complete key is bad in any case.
NO_KEY = (0, 5)


def test_rows_of_a_query_with_the_key_go_to_quarantine(tmp_path: Path) -> None:
    findings, bad = run(tmp_path, query("SELECT s, part AS PART, ID FROM {batch} WHERE n > 4"))
    assert bad == [(0, 3), (0, 4), NO_KEY]
    result = outcome(findings).results[0]
    assert (result.success, result.result["observed_value"]) == (False, 2)
    assert not outcome(findings).stopped
    assert outcome(findings).bad_rows_by_check[f"{QUERY}(d)"] == 2


def test_a_query_that_no_row_meets_succeeds(tmp_path: Path) -> None:
    findings, bad = run(tmp_path, query("SELECT * FROM {batch} WHERE n > 99; "))
    assert (outcome(findings).results[0].success, bad) == (True, [NO_KEY])


@pytest.mark.parametrize("severity", ["critical", "warning"])
def test_a_query_without_the_key_stops_the_partition_if_critical(tmp_path: Path, severity: str) -> None:
    sql = "SELECT part, count(*) FROM {batch} b GROUP BY part HAVING count(*) > 1 -- comment"
    findings, bad = run(tmp_path, query(sql, severity=severity))
    assert outcome(findings).results[0].result["observed_value"] == 3
    assert bad == [NO_KEY]
    assert bool(outcome(findings).stopped) is (severity == "critical")


def test_a_query_of_warnings_quarantines_nothing(tmp_path: Path) -> None:
    findings, bad = run(tmp_path, query("SELECT * FROM {batch}", severity="warning"))
    assert (outcome(findings).results[0].result["observed_value"], bad) == (6, [NO_KEY])


def test_each_partition_is_queried_by_itself(tmp_path: Path) -> None:
    second = ROWS | {"n": [20.0, 0.0, 0.0, 0.0, 0.0, 0.0], "id": [1, 2, 3, 4, 5, 6]}
    largest = "SELECT id, part FROM {batch} WHERE n = (SELECT max(n) FROM {batch})"
    findings, bad = run(tmp_path, query(largest), files=(ROWS, second))
    assert bad == [(0, 3), NO_KEY, (1, 0)]
    assert [o.results[0].result["observed_value"] for o in findings.outcomes] == [1, 1]


@pytest.mark.parametrize("key", ["id + 100 AS id, part", "'x' AS id, part"])
def test_keys_that_are_not_of_the_partition_stop_it(tmp_path: Path, key: str) -> None:
    findings, _ = run(tmp_path, query(f"SELECT {key} FROM {{batch}} WHERE n = 9"))
    (reason,) = outcome(findings).stopped[:1]
    assert "1 of the keys that the query gives are not of the partition; select the key's columns" in reason


def test_a_query_that_fails_stops_only_its_partition(tmp_path: Path) -> None:
    second = ROWS | {"s": ["1"] * 6}
    failing = query("SELECT * FROM {batch} WHERE s::INTEGER > 1")
    findings, _ = run(tmp_path, failing, files=(ROWS, second))
    assert f"{QUERY}(d) could not be evaluated: ConversionException" in outcome(findings).stopped[0]
    assert not findings.outcomes[1].stopped
    findings, _ = run(tmp_path, failing, personal=("s",))
    assert all("a%b" not in reason and "ab'" not in reason for reason in outcome(findings).stopped)


def test_a_query_has_a_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        duckdb_session, "time_limit", lambda con, s=0.5, f=duckdb_session.time_limit: f(con, min(s, 0.5))
    )
    long = (
        "SELECT a.id FROM {batch} a, {batch} b" + ", range(1000) AS r{}(x)" * 4 + " WHERE a.n > random_free"
    )
    sql = long.format(1, 2, 3, 4, batch="{batch}").replace(
        "a.n > random_free", "r1.x + r2.x + r3.x + r4.x = -1"
    )
    findings, _ = run(tmp_path, query(sql))
    assert "it ran for more than 0.5 seconds" in outcome(findings).stopped[0]


def test_rows_of_a_query_are_no_examples_where_columns_are_personal(tmp_path: Path) -> None:
    findings, _ = run(tmp_path, query("SELECT * FROM {batch} WHERE s = 'xb'"), personal=("s", "part"))
    document = json.dumps([r.to_json_dict() for r in outcome(findings).results[:1]])
    assert '"observed_value": 1' in document
    assert '"c"' not in document


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT * FROM {batch}, read_csv('/etc/passwd')", "read_csv() is not one of the functions"),
        (
            "SELECT * FROM {batch} JOIN other USING (id)",
            "other is not a table of this model; there is {batch}",
        ),
        ("SELECT * FROM {batch} WHERE n > random()", "random is not deterministic"),
        ("SELECT nope FROM {batch}", 'Referenced column "nope" not found'),
        ("DELETE FROM {batch}", "Only SELECT statements"),
        ("SELECT 1; SELECT * FROM {batch}", "2 statements; one SELECT is needed"),
        ("SELECT __row FROM {batch}", "names that begin with __ are reserved"),
        ("SELECT * FROM {batch} WHERE getenv('HOME') = 'x'", "getenv() is not one of the functions"),
    ],
)
def test_a_query_that_may_not_run_is_a_problem(sql: str, message: str) -> None:
    suite, problems = parse_suite(json.dumps({"name": "s", "expectations": [query(sql)]}), COLUMNS)
    assert not problems
    (problem,) = query_problems(suite, COLUMNS)
    assert message in problem.message


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Great Expectations' batch of the rows in SQLite; its LIKE ignores case, so the rows have lower case only."""
    import great_expectations as gx

    path = tmp_path_factory.mktemp("sqlite") / "rows.db"
    with sqlite3.connect(path) as con:
        con.execute("CREATE TABLE t (id INTEGER, part TEXT, n REAL, s TEXT, j TEXT)")
        con.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", list(zip(*ROWS.values(), strict=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        asset = context.data_sources.add_sqlite("q", connection_string=f"sqlite:///{path}").add_table_asset(
            "t"
        )
        return asset.add_batch_definition_whole_table("b").get_batch()


SQL_CASES: list[tuple[str, dict[str, Any]]] = [
    (LIKE, {"column": "s", "like_pattern": "a%"}),
    (LIKE, {"column": "s", "like_pattern": "a_b", "mostly": 0.3}),
    (LIKE, {"column": "s", "like_pattern": "a!_b", "escape": "!"}),
    (LIKE, {"column": "s", "like_pattern": r"a\%b"}),
    (LIKE, {"column": "s", "like_pattern": r"a\%b", "escape": "\\"}),
    (NOT_LIKE, {"column": "s", "like_pattern": "%'%"}),
    (NOT_LIKE, {"column": "s", "like_pattern": "%b"}),
    (f"{LIKE}_list", {"column": "s", "like_pattern_list": ["a%", "x%"]}),
    (f"{LIKE}_list", {"column": "s", "like_pattern_list": ["a%", "%!%%"], "match_on": "all", "escape": "!"}),
    (f"{NOT_LIKE}_list", {"column": "s", "like_pattern_list": ["x%", "b"]}),
    (QUERY, {"unexpected_rows_query": "SELECT * FROM {batch} WHERE n > 1"}),
    (QUERY, {"unexpected_rows_query": "SELECT part FROM {batch} GROUP BY part HAVING count(*) > 5;"}),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(SQL_CASES)))
def test_what_only_sql_engines_have_agrees_with_sqlite(tmp_path: Path, sqlite: Any, case: int) -> None:
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    kind, kwargs = SQL_CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = sqlite.validate(ExpectationConfiguration(type=kind, kwargs=kwargs).to_domain_obj())
    findings, _ = run(tmp_path, {"type": kind, "kwargs": kwargs})
    mine = outcome(findings).results[0]
    assert not other.exception_info.get("raised_exception"), other.exception_info
    assert mine.success == other.success
    for name in ("unexpected_count", "element_count", "missing_count", "observed_value"):
        assert mine.result.get(name) == other.result.get(name), name


SCHEMA = {"type": "expect_column_values_to_match_json_schema",
          "kwargs": {"column": "j", "json_schema": {"properties": {"a": {"type": "integer"}}}}}  # fmt: skip


def test_rows_that_great_expectations_finds_go_to_quarantine(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    second = ROWS | {"id": [1, 2, 3, 4, 5, 6], "j": ["{", '{"a": 1}', "", None, '{"a": 0.5}', "{}"]}
    findings, bad = run(tmp_path, SCHEMA, files=(ROWS, second))
    assert bad == [(0, 3), NO_KEY, (1, 0), (1, 2), (1, 4)], "a text that is no JSON does not match either"
    label = "expect_column_values_to_match_json_schema(j)"
    assert findings.reasons.keys() >= {label}
    assert outcome(findings).in_great_expectations == [label]
    assert outcome(findings).results[0].result["partial_unexpected_list"] == ['{"a": "x"}']
    assert f"Great Expectations itself evaluates on the rows: {label}" in caplog.text


def test_batches_give_the_result_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gx_engine, "BATCH_ROWS", 2048)
    values = ["2020-01-01", "no", "5 May 2021", None, "12"]
    rows = {c: [v[0]] * 9000 for c, v in ROWS.items()} | {"id": range(9000), "s": values * 1800}
    kind = "expect_column_values_to_be_dateutil_parseable"
    findings, bad = run(tmp_path, {"type": kind, "kwargs": {"column": "s"}}, files=(rows,))
    assert bad == [(0, i) for i in range(1, 9000, 5)]
    assert outcome(findings).results[0].result["unexpected_count"] == 1800


def test_what_does_not_fit_into_memory_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_gx_engine, "_BYTES_PER_NUMBER", 1 << 30)
    kind = "expect_column_kl_divergence_to_be_less_than"
    findings, _ = run(tmp_path, {"type": kind, "kwargs": {"column": "n", "threshold": 1}, "severity": "info"})
    (reason,) = [r for r in outcome(findings).stopped if "evaluated:" in r]
    assert reason.startswith(f"{kind}(n) could not be evaluated: Great Expectations itself evaluates it")
    assert "set PERENNIAL_MEMORY_MB to 20481, or give the expectation a partition_object" in reason


def test_too_many_values_of_a_distribution_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_extension, "MAX_COUNTED_VALUES", 3)
    kind = "expect_column_kl_divergence_to_be_less_than"
    partition = {"values": ["ab"], "weights": [1]}
    findings, _ = run(tmp_path, {"type": kind, "kwargs": {"column": "s", "partition_object": partition}})
    assert (
        f"{kind}(s) could not be evaluated: the column has 5 different values" in outcome(findings).stopped[0]
    )


def test_a_date_among_the_most_common_is_compared_as_a_date(tmp_path: Path) -> None:
    columns = {"id": "integer", "d": "date"}
    path = tmp_path / "2020-01-01.parquet"
    days = ["2020-01-01", "2020-01-01", "2020-01-02"]
    pq.write_table(pa.table({"id": [1, 2, 3], "d": pa.array(days).cast(pa.date32())}), path)
    kind = "expect_column_most_common_value_to_be_in_set"
    text = json.dumps(
        {
            "name": "s",
            "expectations": [{"type": kind, "kwargs": {"column": "d", "value_set": ["2020-01-01"]}}],
        }
    )
    suite, _ = parse_suite(text, columns)
    feed, con = FeedSchema("m", "rows", columns), duckdb_session.connect()
    landed = [fetch_file(feed, path.stem, str(path), tmp_path, con)]
    create_landed_view(con, feed, landed)
    findings = validate(con, feed, landed, build_checks(suite, columns, ["id"]), 1.0)
    assert outcome(findings).results[0].success


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (SCHEMA | {"kwargs": {"column": "j", "json_schema": {"type": "nope"}}}, "'nope' is not valid"),
        ({"type": "expect_column_values_to_be_of_type", "kwargs": {"column": "n", "type_": "INTEGER_TYPE"}},
         "Unrecognized numpy/python type: INTEGER_TYPE"),
        ({"type": "expect_column_values_to_be_in_type_list", "kwargs": {"column": "s", "type_list": ["x", "y"]}},
         "No recognized numpy/python type in list"),
        ({"type": "expect_column_type_to_be", "kwargs": {"column": "n", "type_": "nope"}}, "Unrecognized pandas type"),
    ],
)  # fmt: skip
def test_arguments_that_great_expectations_refuses_are_problems(entry: dict[str, Any], message: str) -> None:
    good = {"type": "expect_column_values_to_be_of_type", "kwargs": {"column": "n", "type_": "float64"}}
    (problem,) = dry_run.argument_problems(expectations(good, entry), COLUMNS, KEY)
    assert message in problem.message
    assert entry["type"] in problem.message


@pytest.mark.parametrize(
    "name", ['"id2"', "a.b", "[y]", "rows", "order", "file_index", "o'x \" OR 1", "a\nb", "batch"]
)
def test_columns_may_have_any_name(tmp_path: Path, name: str) -> None:
    columns, path = {"id": "integer", name: "string"}, tmp_path / "2020-01-01.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3], name: ["2020", "x", None]}), path)
    cases: list[tuple[str, dict[str, Any], bool, int | None]] = [
        ("expect_column_values_to_match_strftime_format", {"strftime_format": "%Y"}, False, 1),
        ("expect_column_values_to_match_json_schema", {"json_schema": {}}, False, 1),
        ("expect_column_values_to_match_regex", {"regex": "(?=2)2"}, False, 1),
        ("expect_column_values_to_be_of_type", {"type_": "str"}, True, None),
        ("expect_column_type_to_be", {"type_": "str"}, True, None),
        ("expect_column_most_common_value_to_be_in_set", {"value_set": ["x"], "ties_okay": True}, True, None),
        ("expect_column_kl_divergence_to_be_less_than",
         {"partition_object": {"values": ["2020", "x"], "weights": [0.5, 0.5]}, "threshold": 1}, True, None),
    ]  # fmt: skip
    entries = [{"type": t, "kwargs": {"column": name, **k}, "severity": "info"} for t, k, _, _ in cases]
    entries.append(query("SELECT * FROM {batch} WHERE id = 3", severity="info"))
    suite, problems = parse_suite(json.dumps({"name": "s", "expectations": entries}), columns)
    assert not problems and not query_problems(suite, columns)
    feed, con = FeedSchema("m", "rows", columns), duckdb_session.connect(threads=2)
    landed = [fetch_file(feed, path.stem, str(path), tmp_path, con)]
    create_landed_view(con, feed, landed)
    findings = validate(con, feed, landed, build_checks(suite, columns, ["id"]), 1.0)
    found = [(bool(r.success), r.result.get("unexpected_count")) for r in outcome(findings).results[:8]]
    assert found == [*((success, count) for *_, success, count in cases), (False, None)]
