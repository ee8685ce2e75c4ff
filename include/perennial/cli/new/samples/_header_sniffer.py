"""Whether the first record of a text file has the names of its columns, and whether the last ones are rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from perennial.core.sql import MISSING_MARKERS

__all__ = ["is_footer", "is_header", "may_be_footer", "rows_of_units", "total_lines"]

#: Share of the first record's columns in which its text must occur again for it to be a row of texts.
RECURRING_SHARE = 0.5
#: Names that are numbers in order, such as 0, 1, 2 or 2019, 2020, 2021; and those that begin with another number.
FEWEST_NUMBERED, FEWEST_FROM_ANY = 3, 6
_NUMBER = re.compile(r"[+-]?(\d[\d.,' ]*|[.,]\d+)([eE][+-]?\d+)?%?")
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?")
_TOTAL = re.compile(r"(?i)\W*(grand |sub)?(totals?|sum|summe|gesamt(summe)?|total général|totale|suma)\b\W*")


def is_header(records: Sequence[Sequence[str]]) -> bool:
    """Whether the first of some records of equal length has names.

    It has not if it has numbers or dates as the rows have, or texts of which most occur again in their columns.
    """
    first, rows = [cell.strip() for cell in records[0]], records[1:]
    typed = [i for i, cell in enumerate(first) if _is_typed(cell)]
    if typed:
        return len(typed) >= FEWEST_NUMBERED and _in_steps([first[i] for i in typed])
    if not rows:
        return True
    columns = [[row[i].strip() for row in rows] for i in range(len(first))]
    if any(_is_typed_column(column) for column, name in zip(columns, first, strict=True) if name):
        return True
    filled = [i for i, cell in enumerate(first) if cell]
    recurring = sum(first[i] in columns[i] for i in filled)
    return recurring <= RECURRING_SHARE * len(filled)


def total_lines(records: Sequence[Sequence[str]]) -> int:
    """The number of records at the end that are no rows: of one cell, or totals by their first text.

    A line that is cut short is none of these: the next file would lose a row.
    """
    count = 0
    if not records or len(records[0]) < 2:
        return 0
    while count < len(records) - 2 and is_footer(records[-1 - count]):
        count += 1
    return count


def is_footer(record: Sequence[str]) -> bool:
    """Whether a record of a table with several columns is a total, or a remark of one cell."""
    if len(record) < 2:
        return True
    first = next((cell for cell in record if cell.strip()), "")
    return bool(_TOTAL.fullmatch(first))


def may_be_footer(line: str, row: str) -> bool:
    """Whether a line may be no row, before it is known how rows are divided: a total, or one without their sign."""
    if _TOTAL.match(line):
        return True
    signs = [sign for sign in ",;\t|" if sign in row]
    return bool(signs) and not any(sign in line for sign in signs)


def rows_of_units(records: Sequence[Sequence[str]]) -> int:
    """The number of rows after the header, at most two, that describe the columns: units, or their kinds in Orange.

    At least half of the columns have only numbers or dates without them, and none in them.
    """
    kinds = {"c", "d", "s", "t", "continuous", "discrete", "string", "time"}
    roles = {"", "class", "meta", "m", "i", "ignore"}
    texts = [{cell.strip() for cell in record} for record in records[1:3]]
    if len(texts) == 2 and texts[0] <= kinds and texts[1] <= roles and "class" in texts[1]:
        return 2
    for count in (1, 2):
        described, rows = records[1 : 1 + count], records[1 + count : 500]
        even = [row for row in rows if len(row) == len(records[0])]
        if len(even) < FEWEST_NUMBERED or any(len(row) != len(records[0]) for row in described):
            return 0
        typed = [i for i in range(len(records[0])) if _is_typed_column([row[i].strip() for row in even])]
        texts_only = not any(_is_typed(row[i].strip()) for row in described for i in typed)
        filled = all(sum(bool(row[i].strip()) for i in typed) >= len(typed) / 2 for row in described[:1])
        markers = any(
            row[i].strip() in (*MISSING_MARKERS, "?", "-") for row in described for i in typed if row[i]
        )
        if len(typed) >= len(records[0]) / 2 and len(typed) > 1 and texts_only and filled and not markers:
            return count
    return 0


def _is_typed(cell: str) -> bool:
    return bool(_NUMBER.fullmatch(cell) or _DATE.fullmatch(cell))


def _is_typed_column(column: Sequence[str]) -> bool:
    cells = [cell for cell in column if cell and cell not in MISSING_MARKERS and cell != "?"]
    return bool(cells) and sum(map(_is_typed, cells)) > 0.9 * len(cells)


def _in_steps(cells: Sequence[str]) -> bool:
    """Whether cells are whole numbers one after the other, or dates that ascend."""
    if all(re.fullmatch(r"\d{1,6}", cell) for cell in cells):
        usual = int(cells[0]) == 0 or int(cells[0]) >= 1800 or len(cells) >= FEWEST_FROM_ANY
        return usual and all(int(b) - int(a) == 1 for a, b in pairwise(cells))
    return all(_DATE.fullmatch(cell) for cell in cells) and all(a < b for a, b in pairwise(cells))
