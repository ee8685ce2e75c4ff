"""The placeholders of a query: found outside of texts and comments, and nothing else changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.core import query_text

PARTS = st.sampled_from([
    "{start}", "{end}", " ", "\n", "x", "1", "'a ''b'", "'{}'", '"c{d}"', "-- {start} ; '\n", "/* ' {x} */",
    "$$ {y} ' $$", "$t$ ; $t$", "E'\\' {z}'", "::date", "[1:2]", "(", ")", ",", "=",
])  # fmt: skip


@given(st.lists(PARTS, max_size=12))
def test_only_placeholders_are_replaced(parts: list[str]) -> None:
    sql = "SELECT " + " ".join(["{start}", *parts])
    checked = query_text.check_query(sql)
    assert checked == sql.strip()
    replaced = query_text.with_parameters(checked, {"start": ":start", "end": "$2"})
    codes = {"{start}": ":start", "{end}": "$2"}
    assert replaced == ("SELECT " + " ".join([":start", *(codes.get(part, part) for part in parts)])).strip()


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("", "begins with SELECT"),
        ("-- nothing", "begins with SELECT"),
        ("DELETE FROM t WHERE a > {start}", "begins with SELECT"),
        ("SELECT 1 WHERE a > {end}", r"needs \{start\}"),
        ("SELECT 1 -- {start}", r"needs \{start\}"),
        ("SELECT {start}; SELECT 1", "two statements"),
        ("SELECT {start} WHERE a = '{end}'", "is a text"),
        ('SELECT {start}, "{start}"', "is a text"),
        ("SELECT {start}, $$ {end} $$", "is a text"),
        ("SELECT {start}, {date}", r"unknown placeholder \{date\}"),
        ("SELECT {start}, {", "brace"),
        ("SELECT {start}, 'a", "does not end"),
        ("SELECT {start} /* a", "does not end"),
    ],
)
def test_what_is_no_query_of_a_partition_is_refused(sql: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        query_text.check_query(sql)


def test_a_condition_needs_one_of_the_bounds() -> None:
    assert query_text.check_query("SELECT max(a) > {end} FROM t", of_rows=False)
    assert query_text.placeholders("SELECT '{start}', {end}") == ["end"]
    assert query_text.placeholders("SELECT {end}, {start}, {end}") == ["start", "end"]
    with pytest.raises(ValueError, match="bounds of a partition"):
        query_text.check_query("SELECT 1 -- {end}", of_rows=False)


@pytest.mark.parametrize("end", [";", " ; ", ";\n-- done", "; /* done */ ;"])
def test_a_semicolon_at_the_end_is_removed(end: str) -> None:
    assert ";" not in query_text.check_query("SELECT {start}" + end)
