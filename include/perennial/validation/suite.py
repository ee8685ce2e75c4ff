"""Parse the suite ``expectations.json``, in Great Expectations' format, and check its content.

An expectation is row-level (it becomes a SQL condition that a bad row meets) or table-level (it becomes SQL aggregates
over the partition). Types that are not in `SUPPORTED` are refused when the spec is checked.

No heavy libraries are imported here, because ``perennial check`` and DAG files read suites.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from perennial.core.sql import shorten
from perennial.validation._arguments import batch_query, check_columns, check_shapes, check_values
from perennial.validation.signatures import REFUSED, SUPPORTED

__all__ = ["MAX_EXPECTATIONS", "QUERY_TYPE", "SEVERITIES", "SUPPORTED", "Expectation", "SuiteProblem", "batch_query",
           "parse_suite"]  # fmt: skip
MAX_EXPECTATIONS = 1000
#: The type whose argument is SQL.
QUERY_TYPE = "unexpected_rows_expectation"
#: Longest part of a description that names an expectation.
MAX_DESCRIPTION_LENGTH = 100
SEVERITIES = ("critical", "warning", "info")
#: Keys of an entry of the suite.
_KEYS = {"type", "kwargs", "meta", "severity", "notes", "description", "id", "rendered_content"}


@dataclass(frozen=True)
class Expectation:
    """One declared expectation.

    Attributes:
        type: Great Expectations' type.
        kwargs: the arguments as written.
        severity: ``critical``, ``warning`` or ``info``; the last two are recorded only.
        line: line in the suite's file.
        config: the whole entry, in Great Expectations' format.
    """

    type: str
    kwargs: dict[str, Any]
    severity: str
    line: int
    config: dict[str, Any] = field(repr=False)

    @property
    def level(self) -> str:
        """``row`` or ``table``."""
        return SUPPORTED[self.type].level

    @property
    def columns(self) -> list[str]:
        """The columns that the expectation reads."""
        if self.type == "expect_table_columns_to_match_ordered_list":
            return []
        named = [self.kwargs[k] for k in ("column", "column_A", "column_B") if k in self.kwargs]
        return named + list(self.kwargs.get("column_list", []))

    @property
    def patterns(self) -> list[str]:
        """Its regular expressions."""
        return [self.kwargs["regex"]] if "regex" in self.kwargs else list(self.kwargs.get("regex_list", []))

    @property
    def label(self) -> str:
        """The name of the expectation in reasons and messages: type and columns, no values.

        A query has no columns: its description stands for them, or else its line.
        """
        if self.type == QUERY_TYPE:
            description = " ".join(str(self.config.get("description") or f"line {self.line}").split())
            return f"{self.type}({description[:MAX_DESCRIPTION_LENGTH]})"
        return f"{self.type}({', '.join(self.columns)})"


@dataclass(frozen=True)
class SuiteProblem:
    """An invalid part of a suite.

    Attributes:
        line: line in the suite's file.
        message: what is wrong.
    """

    line: int
    message: str

    def __str__(self) -> str:
        return f"expectations.json:{self.line}: {self.message}"


def parse_suite(text: str, columns: Mapping[str, str]) -> tuple[list[Expectation], list[SuiteProblem]]:
    """Read a suite.

    Args:
        text: the file's text.
        columns: declared type of each column (``data.columns`` of the spec).

    Returns:
        The valid expectations, and the problems of the others.
    """
    try:
        suite = json.loads(text)
        json.dumps(suite, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return [], [SuiteProblem(1, "has a text that is not valid Unicode: half of a surrogate pair")]
    except RecursionError:
        return [], [SuiteProblem(1, "is nested too deeply")]
    except ValueError as error:
        return [], [SuiteProblem(getattr(error, "lineno", 1), f"is not JSON: {getattr(error, 'msg', error)}")]
    if not isinstance(suite, dict) or not isinstance(suite.get("expectations"), list):
        return [], [SuiteProblem(1, "a suite is an object with 'name' and a list 'expectations'")]
    if not isinstance(suite.get("name"), str) or not suite["name"]:
        return [], [SuiteProblem(1, "the suite has no 'name'")]
    problems = []
    if suite.get("suite_parameters"):
        problems.append(
            SuiteProblem(1, "suite_parameters are not supported: write the values into the expectations")
        )
    if len(suite["expectations"]) > MAX_EXPECTATIONS:
        return [], [
            SuiteProblem(1, f"{len(suite['expectations'])} expectations; {MAX_EXPECTATIONS} are allowed")
        ]
    expectations = []
    for entry, line in zip(suite["expectations"], _lines(text), strict=True):
        messages = list(_check_entry(entry, columns))
        problems += [SuiteProblem(line, message) for message in messages]
        if not messages:
            severity = entry.get("severity") or "critical"
            kwargs = {k: v for k, v in entry["kwargs"].items() if v is not None}
            expectations.append(Expectation(entry["type"], kwargs, severity, line, entry))
    return expectations, problems


def _lines(text: str) -> list[int]:
    """The line on which each entry of ``expectations`` begins."""
    decoder = json.JSONDecoder()
    lines: list[int] = []
    # The JSON decoder skips preceding values, so that a nested key "expectations" is not mistaken for the suite's.
    at = text.index("{") + 1
    space = re.compile(r"[\s,:]*")
    while True:
        at = space.match(text, at).end()  # type: ignore[union-attr]
        key, at = decoder.raw_decode(text, at)
        at = space.match(text, at).end()  # type: ignore[union-attr]
        if key == "expectations":
            break
        _, at = decoder.raw_decode(text, at)
    at += 1
    while True:
        at = space.match(text, at).end()  # type: ignore[union-attr]
        if text[at] == "]":
            return lines
        lines.append(text.count("\n", 0, at) + 1)
        _, at = decoder.raw_decode(text, at)


def _check_entry(entry: Any, columns: Mapping[str, str]) -> Iterator[str]:
    """The problems of one entry."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kwargs"), dict):
        yield "an expectation is an object with 'type' and 'kwargs'"
        return
    if "expectation_type" in entry:
        yield "'expectation_type' is the format before Great Expectations 1.0: write 'type'"
        return
    if unknown := sorted(set(entry) - _KEYS):
        yield f"unknown key {unknown[0]!r}; allowed: {', '.join(sorted(_KEYS))}"
    name, kwargs = entry.get("type"), entry["kwargs"]
    if name in REFUSED:
        yield f"expectation type {name!r} is not supported: {REFUSED[name]}"
        return
    if name not in SUPPORTED:
        close = difflib.get_close_matches(str(name), SUPPORTED, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        yield f"expectation type {name!r} is not supported; {hint}allowed: {', '.join(sorted(SUPPORTED))}"
        return
    if (entry.get("severity") or "critical") not in SEVERITIES:
        yield f"severity is {entry['severity']!r}; allowed: {', '.join(SEVERITIES)}"
    for text in ("description", "id"):
        if not isinstance(entry.get(text) or "", str):
            yield f"{text} is {shorten(entry[text])}; a text is needed"
    if not isinstance(entry.get("meta") or {}, dict):
        yield f"meta is {shorten(entry['meta'])}; an object is needed"
    notes = entry.get("notes") or ""
    if not isinstance(notes, str | list) or any(not isinstance(note, str) for note in notes):
        yield f"notes is {shorten(notes)}; a text, or a list of texts, is needed"
    signature = SUPPORTED[name]
    allowed = (*signature.required, *signature.optional)
    if unknown := sorted(set(kwargs) - set(allowed)):
        close = difflib.get_close_matches(unknown[0], allowed, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        yield f"{name} has no argument {unknown[0]!r}; {hint}allowed: {', '.join(allowed) or 'none'}"
    kwargs = {k: v for k, v in kwargs.items() if v is not None}
    if missing := [n for n in signature.required if n not in kwargs]:
        yield f"{name} needs {missing[0]!r}"
        return
    if bad := [k for k, v in kwargs.items() if isinstance(v, dict) and "$PARAMETER" in v]:
        yield f"{name}: {bad[0]} is a suite parameter, which is not supported: write the value"
        return
    if shapes := list(check_shapes(kwargs)):
        yield from (f"{name}: {message}" for message in shapes)
        return
    yield from (f"{name}: {message}" for message in check_columns(name, signature, kwargs, columns))
    yield from (f"{name}: {message}" for message in check_values(name, kwargs, columns))
