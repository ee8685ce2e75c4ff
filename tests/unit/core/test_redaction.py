"""Messages of libraries' errors for models with personal columns: nothing of the library's text."""

from __future__ import annotations

import traceback

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.core import redaction
from perennial.core.errors import DataError, PerennialError, UnexpectedError
from support import canary

ERRORS = [
    "SELECT {}::DATE", "SELECT {}::INTEGER", "SELECT error('v ' || {})", "SELECT json_extract({}, '$.a')",
    "SELECT strptime({}, '%Y')", "SELECT {}::ENUM('a')", "SELECT regexp_matches('x', '(' || {})",
    "SELECT from_base64({} || '!')", "SELECT ({} || chr(10) || 'x')::TIMESTAMP",
    "SELECT {}::STRUCT(a INTEGER)", "SELECT {}::INTEGER[]", "SELECT {}::UUID", "SELECT {}::DECIMAL(4, 1)",
]  # fmt: skip


def error_of(sql: str) -> duckdb.Error:
    with pytest.raises(duckdb.Error) as raised:
        duckdb.connect().sql(sql).fetchall()
    return raised.value


@pytest.mark.parametrize("sql", ERRORS)
def test_no_text_of_the_library_is_copied(sql: str) -> None:
    error = error_of(sql.format(f"'{canary.TEXT}'"))
    text = redaction.error_text(error, hide=True)
    assert canary.find(str(error).encode()) and not canary.find(text.encode())
    assert text.startswith(("Conversion Error", "Invalid Input Error", "Out of Range Error"))


@settings(max_examples=60)
@given(st.text(min_size=1, max_size=40))
def test_only_listed_words_are_shown(value: str) -> None:
    """The text about an error is the same whatever the value, apart from the listed meanings."""
    meanings = {*redaction._PHRASES.values(), ""}
    for message in (
        f"Conversion Error: {value}",
        f"Invalid Input Error: CSV Error on Line: 7\n{value}",
        value,
    ):
        text = redaction.redacted_text(ValueError(message))
        for part in (
            *meanings,
            "Conversion Error",
            "Invalid Input Error",
            *redaction._CATEGORIES,
            "ValueError",
        ):
            text = text.replace(part, "") if part else text
        rest = redaction._TYPES.sub("", text).replace("line 7", "")
        assert set(rest) <= set(": ,to") or "to " in rest, (value, rest)


def test_what_helps_is_kept() -> None:
    error: Exception
    assert redaction.redacted_text(error_of("SELECT 'x'::DATE")) == "Conversion Error: a text is not a date"
    error = duckdb.ConversionException(
        "Conversion Error: Could not convert string 'x' to INT32 when casting from source column age"
    )
    expected = "Conversion Error: a value cannot be converted, to INT32, column 'age'"
    assert redaction.redacted_text(error, ["mail", "age"]) == expected
    error = duckdb.InvalidInputException(
        "Invalid Input Error: CSV Error on Line: 12\nOriginal Line: CSV Error on Line: 99\n"
    )
    assert redaction.redacted_text(error) == "Invalid Input Error: line 12"
    assert redaction.error_text(error_of("SELECT 'x'::DATE"), hide=False).startswith(
        "Conversion Error: invalid date"
    )


@redaction.redact_errors(lambda hide, kind: hide)
def fails(hide: bool, kind: type[Exception]) -> None:
    try:
        raise ValueError(canary.TEXT)
    except ValueError as error:
        if issubclass(kind, PerennialError):
            raise kind("safe", "do this") from error
        raise kind(f"about {canary.TEXT}") from error


@pytest.mark.parametrize("kind", [DataError, KeyError, RuntimeError])
def test_no_cause_of_an_error_leaves_the_step(kind: type[Exception]) -> None:
    with pytest.raises(DataError if kind is DataError else UnexpectedError) as raised:
        fails(True, kind)
    error = raised.value
    assert error.__cause__ is None and error.__context__ is None
    assert not canary.find("".join(traceback.format_exception(error)).encode())
    assert kind is DataError or ("in fails" in str(error) and kind.__name__ in str(error)), (
        "where it occurred is kept"
    )


def test_errors_of_other_models_are_left_as_they_are() -> None:
    with pytest.raises(KeyError) as raised:
        fails(False, KeyError)
    assert isinstance(raised.value.__cause__, ValueError)
