"""The columns of a landed file compared with those that its feed declares."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

from perennial.core.sql import fold_identifier
from perennial.feeds import column_casts
from perennial.feeds.feed_schema import FeedSchema

if TYPE_CHECKING:
    import pyarrow as pa

#: Problems of one file that its error message lists.
MAX_PROBLEMS_LISTED = 6


def check_columns(feed: FeedSchema, day: str, uri: str, schema: pa.Schema, is_text: bool) -> None:
    """Refuse missing, retyped, ambiguous and (if the spec says so) extra columns, all in one message."""
    types = {f.name: f.type for f in schema}
    folded = [fold_identifier(n) for n in schema.names]
    problems = []
    for column, declared in feed.columns.items():
        if column == feed.row_number:
            if fold_identifier(column) in folded:
                problems.append(f"column {column!r} is in the file, but data.row_number computes it")
        elif column not in types:
            problems.append(f"column {column!r} ({declared}) is missing{_similar(column, schema.names)}")
        elif folded.count(fold_identifier(column)) > 1:
            problems.append(f"column {column!r} occurs more than once (names are compared without case)")
        elif other := _renamed_duplicate(column, folded):
            problems.append(
                f"column {other!r} occurs more than once, and DuckDB would call the second one {column!r}"
            )
        elif not is_text and declared not in column_casts.readable_types(types[column]):
            problems.append(f"column {column!r} is declared {declared}; the file has {types[column]}")
    extra = [n for n in schema.names if n not in feed.columns]
    if feed.extra_columns == "stop" and extra:
        # Without a header, the names are the cells of the first row; then declared columns are missing.
        may_be_row = feed.hides_values and not set(feed.columns) <= set(types)
        first = "a column" if may_be_row else f"column {extra[0]!r}"
        problems.append(
            f"{first} is not declared (extra_columns: stop)"
            + (f", nor are {len(extra) - 1} more" if extra[1:] else "")
        )
    if problems:
        omitted = len(problems) - MAX_PROBLEMS_LISTED
        more = f"; and {omitted} more" if omitted > 0 else ""
        raise feed.error(f"{uri}: {'; '.join(problems[:MAX_PROBLEMS_LISTED])}{more}",
                         "correct the feed, or change data.columns and the model that uses them", day)  # fmt: skip


def _similar(column: str, names: Iterable[str]) -> str:
    """What a message about a missing column adds if the file has one whose name looks the same, or nearly so."""
    name = next((n for n in names if _spelling(n) == _spelling(column)), None)
    if name is None:
        return ""
    only_case = name.casefold() == column.casefold()
    # Spaces of other kinds, invisible characters and combined letters look like those declared.
    return f"; the file has {name!r}" + ("" if only_case else f", written {name!a}; declared is {column!a}")


def _spelling(name: str) -> str:
    """A name without its case, spaces, invisible characters and Unicode form."""
    visible = (c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) not in ("Cf", "Cc"))
    return re.sub(r"\s", "", unicodedata.normalize("NFKC", "".join(visible).casefold()))


def _renamed_duplicate(column: str, folded: list[str]) -> str | None:
    """A column that occurs more than once in a file, so that DuckDB could give one of them the name of ``column``.

    It numbers them: of ``a`` and ``A``, the second becomes ``A_1``, whether or not the file has an ``A_1`` as well.
    """
    stem = re.match(r"(.+?)(_\d+)+$", fold_identifier(column), re.DOTALL)
    if stem is None:
        return None
    stems = {fold_identifier(column)[:i] for i in range(stem.end(1), len(column))}
    return next((name for name in sorted(stems) if folded.count(name) > 1), None)
