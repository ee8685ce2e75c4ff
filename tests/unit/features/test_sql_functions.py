"""All functions of DuckDB against the lists of those that SQL of people may use."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from perennial.features import author_sql, sql_functions
from perennial.storage import duckdb_session

CANARY = "the content of a file that nobody gave away"
ALLOWED = sql_functions.SCALARS | sql_functions.AGGREGATES
#: Values of each type, as SQL over the columns of the table ``rows``.
VALUES = {
    "VARCHAR": ["text", "'a'", "'%Y'", "'day'", "'UTC'"], "JSON": ["js"], "BLOB": ["text::BLOB"], "BIT": ["'101'::BIT"],
    "DATE": ["day"], "TIMESTAMP": ["moment"], "TIMESTAMP WITH TIME ZONE": ["moment::TIMESTAMPTZ"],
    "TIME": ["moment::TIME"], "INTERVAL": ["INTERVAL 2 DAYS"], "BOOLEAN": ["number > 2"], "LAMBDA": ["lambda i: i",
    "lambda i: i > 1", "lambda a, b: a + b"], "VARCHAR[]": ["[text]", "['a']"], "MAP(K, V)": ["MAP {'a': number}"],
    "STRUCT": ["{'a': number}"], "TUPLE": ["(number, text)"], "TUPLE(K, V)[]": ["[(1, number)]"],
    "BOOLEAN[]": ["[true, false]"], "DOUBLE[3]": ["[number, 1, 2]::DOUBLE[3]"],
    "FLOAT[3]": ["[number, 1, 2]::FLOAT[3]"],
    "T[][]": ["[[number]]"], "DOUBLE[ANY]": ["[number, 1, 2]::DOUBLE[3]"], "FLOAT[ANY]": ["[number, 1, 2]::FLOAT[3]"],
    "None": ["number", "[3, number, 1]", "text", "js", "MAP {'a': number}", "day", "1", "'{\"a\": \"BIGINT\"}'"],
}  # fmt: skip
#: Arguments that their types do not tell.
ARGUMENTS = {
    **dict.fromkeys(("array_cat", "array_concat", "array_zip", "list_cat", "list_concat", "list_zip"), "[number], [2]"),
    **dict.fromkeys(("array_slice", "list_slice"), "[number, 2, 3], 1, 2"),
    **dict.fromkeys(("array_to_json", "list_bool_and", "list_bool_or"), "[number > 1, false]"),
    "cardinality": "MAP {'a': number}", "map_concat": "MAP {'a': number}, MAP {'b': number}",
    **dict.fromkeys(("element_at", "map_contains", "map_extract", "map_extract_value"), "MAP {'a': number}, 'a'"),
    **dict.fromkeys(("from_json", "from_json_strict", "json_transform", "json_transform_strict"),
                    "js, '{\"a\": \"BIGINT\"}'"),
    **dict.fromkeys(("json_quote", "row_to_json", "struct_keys", "to_json"), "{'a': number}"),
    **dict.fromkeys(("struct_insert", "struct_update"), "{'a': number}, b := 2"),
    "from_base64": "'YQ=='", "map_contains_entry": "MAP {'a': number}, 'a', 2", "split_part": "text, '/', 2",
    "strptime": "'2024-01-05', '%Y-%m-%d'", "try_strptime": "'2024-01-05', '%Y-%m-%d'", "struct_pack": "a := number",
    "struct_concat": "{'a': number}, {'b': text}", "struct_extract_at": "row(number, text), 1",
}  # fmt: skip
NUMBERS = ["number", "2", "0.5"]
LISTS = ["[3, number, 1]", "[[1, 2], [3]]", "['a', 'b']", "[true, false]"]


@pytest.fixture(scope="module")
def catalogue() -> list[tuple[str, str, list[str], bool]]:
    """Name, kind, types of the parameters (``None`` if not known) and whether more may follow, of each function."""
    rows = duckdb.connect().execute(
        "SELECT lower(function_name), function_type, parameter_types, varargs FROM duckdb_functions()"
    )
    return [
        (n, kind, ["None" if t is None else t for t in types], bool(v))
        for n, kind, types, v in rows.fetchall()
    ]


def call(name: str, arguments: tuple[str, ...] = ("number",)) -> str:
    return f'"{name}"({", ".join(arguments)})'


def test_every_other_function_of_duckdb_is_refused(catalogue: Any) -> None:
    con = duckdb.connect()
    checked = 0
    for name in sorted({n for n, *_ in catalogue}):
        scalar, table = call(name), f"{call(name)} AS t"
        problem = author_sql.check_query(con, f"SELECT id,\n{scalar} AS x FROM rows", [], ["id"])
        if name not in ALLOWED | {"unnest"} or name in sql_functions.SIZED:
            assert problem, f"{name} may be used in features"
            assert (name in problem.message, problem.line) == (True, 2)
        else:
            assert problem is None or name == "age", f"{name} is on the list and refused: {problem}"
        checked += 1
        if "collate_" in name:  # several hundred, all alike
            continue
        label = author_sql.check_expression(con, scalar, ["number"])
        if name not in sql_functions.SCALARS or name in sql_functions.SIZED:
            assert label, f"{name} may be used in a label"
            assert name in label.message
        as_table = author_sql.check_query(con, f"SELECT id, x FROM rows, {table}", [], ["id"])
        if name != "unnest":
            assert as_table, f"{name} may be used as a table"
            assert name in as_table.message
    assert checked > 1000


def candidates(name: str, signatures: list[tuple[list[str], bool]]) -> Iterator[tuple[str, ...]]:
    """Arguments to try a function with."""
    if name in ARGUMENTS:
        yield (ARGUMENTS[name],)
    for types, more in signatures:
        pools = [VALUES.get(t, LISTS if t.endswith("[]") else NUMBERS) for t in types]
        pools += [["number", "text"], ["2"]] if more and not types else []
        yield from itertools.islice(itertools.product(*pools), 40)
        if "None" in types and len(types) == 2:
            yield from itertools.product(VALUES["None"], repeat=2)


def test_allowed_functions_give_the_same_again_and_read_no_file(catalogue: Any, tmp_path: Path) -> None:
    """Each is called with arguments of its types, in two connections; a text is the path of a file."""
    secret = tmp_path / "secret.csv"
    secret.write_text(CANARY)
    connections = []
    for _ in range(2):
        locked = duckdb_session.connect_small()
        locked.execute(
            "CREATE TEMP TABLE rows AS SELECT i AS number, ? AS text, '{\"a\": 1}'::JSON AS js, DATE '2024-01-01' + "
            "i::INTEGER AS day, TIMESTAMP '2024-01-01 10:00:00' + INTERVAL (i) HOURS AS moment FROM range(1, 4) t(i)",
            [str(secret)],
        )
        duckdb_session.lock(locked)
        connections.append(locked)
    never_called = []
    names = sorted((ALLOWED | sql_functions.WINDOWS) - set(sql_functions.SIZED))
    for name in names:
        signatures = [(types, more) for n, _, types, more in catalogue if n == name]
        called = 0
        for arguments in candidates(name, signatures):
            over = " OVER (ORDER BY number)" if name in sql_functions.WINDOWS else ""
            sql = f"SELECT {call(name, arguments)}{over} FROM rows"
            if author_sql.check_query(connections[0], sql, [], []):
                assert name == "age"
                continue
            try:
                first = connections[0].execute(sql).fetchall()
            except duckdb.Error:
                continue
            assert repr(connections[1].execute(sql).fetchall()) == repr(first), sql
            assert CANARY not in repr(first)
            called += 1
            if called == 2:
                break
        if not called:
            never_called.append(name)
    assert not never_called, " ".join(never_called)
