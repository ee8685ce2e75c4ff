"""The text of a feed's SQL query: its placeholders ``{start}`` and ``{end}``, the bounds of a partition.

The bounds are handed to the database as parameters. They are never written into the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

__all__ = ["PLACEHOLDERS", "check_query", "placeholders", "with_parameters"]

#: The moments between which a partition's rows lie: the first one is part of it, the second is not.
PLACEHOLDERS = ("start", "end")
_PARTS = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?\*/)
    |(?P<quoted>[eE]'(?:[^'\\]|''|\\.)*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|\$(?P<tag>[A-Za-z_]\w*|)\$.*?\$(?P=tag)\$)
    |(?P<open>/\*|'|")
    |(?P<placeholder>\{[^{}]*\})
    |(?P<brace>[{}])
    |(?P<semicolon>;)
    |(?P<word>\w+)""",
    re.DOTALL | re.VERBOSE,
)


def _parts(sql: str) -> Iterator[tuple[str, str]]:
    """The kind and the text of each part of a query, in order; together they are the query."""
    end = 0
    for part in _PARTS.finditer(sql):
        if part.start() > end:
            yield "other", sql[end : part.start()]
        kind = next(kind for kind, text in part.groupdict().items() if text is not None and kind != "tag")
        yield kind, part[0]
        end = part.end()
    if end < len(sql):
        yield "other", sql[end:]


def check_query(sql: str, *, of_rows: bool = True) -> str:
    """Refuse a query that is more than one statement, is no SELECT, or does not use the bounds of a partition.

    Args:
        sql: the query.
        of_rows: whether it gives the rows of a partition, and needs their first bound; otherwise it needs one of them.

    Returns:
        The query, without a semicolon at its end.

    Raises:
        ValueError: it is one of these.
    """
    parts = [(kind, text) for kind, text in _parts(sql) if text.strip()]
    code = [(kind, text) for kind, text in parts if kind != "comment"]
    while code and code[-1][0] == "semicolon":
        code.pop()
    words = [text.lower() for kind, text in code if kind == "word"]
    if not words or words[0] not in ("select", "with", "values"):
        raise ValueError("a query begins with SELECT, WITH or VALUES")
    names = {text[1:-1] for kind, text in code if kind == "placeholder"}
    for kind, text in code:
        if kind == "open":
            raise ValueError(f"a text or comment that begins with {text} does not end")
        if kind == "semicolon":
            raise ValueError("there are two statements: one query is needed")
        if kind == "brace":
            raise ValueError("a brace is not closed")
        if kind == "quoted" and any(f"{{{name}}}" in text for name in PLACEHOLDERS):
            raise ValueError(
                f"{text[:40]} is a text: write {{start}} and {{end}} without quotes, as they are parameters"
            )
    if unknown := names - set(PLACEHOLDERS):
        raise ValueError(f"unknown placeholder {{{min(unknown)}}}; allowed: {{start}} {{end}}")
    if not of_rows and not names:
        raise ValueError(
            "it needs {start} or {end}, the bounds of a partition, as in SELECT max(loaded) >= {end}"
        )
    if of_rows and "start" not in names:
        raise ValueError(
            "it needs {start}, and usually {end}, the bounds of a partition, as in "
            "WHERE event_time >= {start} AND event_time < {end}"
        )
    whole = list(_parts(sql))
    last = max(i for i, part in enumerate(whole) if part in code)
    return "".join(text for i, (kind, text) in enumerate(whole) if i <= last or kind != "semicolon").strip()


def placeholders(sql: str) -> list[str]:
    """The names of `PLACEHOLDERS` that a query uses, in their order."""
    used = {text[1:-1] for kind, text in _parts(sql) if kind == "placeholder"}
    return [name for name in PLACEHOLDERS if name in used]


def with_parameters(sql: str, parameters: Mapping[str, str]) -> str:
    """Write a query with the parameters of a driver.

    Args:
        sql: a query that `check_query` has accepted.
        parameters: the driver's text of each of `PLACEHOLDERS`.
    """
    return "".join(parameters[text[1:-1]] if kind == "placeholder" else text for kind, text in _parts(sql))
