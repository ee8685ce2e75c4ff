"""Types of a table's columns compared with those of rows that are to be written.

Delta would cast the rows to the table's types without a message: 0.75 becomes 0 in a column of integers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

#: Changes of a type after which each stored value is the same: Delta's type before, types after. Integers beyond 2^53,
#: which DOUBLE does not have, are refused while they are converted.
_LOSSLESS = {
    "long": ("double",),
    "integer": ("long", "double"),
    "float": ("double",),
    "date": ("timestamp_ntz",),
}
#: Delta's type of a column that has only nulls.
_NO_TYPE = "void"
#: The spec's words for Delta's types.
_WORDS = {"long": "integer", "double": "number", "timestamp_ntz": "timestamp", "float": "number (32 bits)"}


class ColumnChange(NamedTuple):
    """A column whose type in the rows is not the table's.

    Attributes:
        column: name in the table.
        before: the table's type, in the spec's words.
        after: the rows' type; empty if the rows have the name in another case.
        lossless: whether the stored values can be converted exactly.
    """

    column: str
    before: str
    after: str
    lossless: bool

    def __str__(self) -> str:
        if not self.after:
            return f"column {self.column!r} differs only in case from one of the table"
        return f"column {self.column!r} is {self.before} in the table, and {self.after} in the rows"


def changes(table: DeltaTable, schema: pa.Schema, key: Collection[str] = ()) -> list[ColumnChange]:
    """The columns whose type in ``schema`` is not the table's; new columns are no change.

    Args:
        table: the table.
        schema: of the rows to write.
        key: columns that identify a row; no change of them is lossless.
    """
    from deltalake import Schema

    stored = {field.name: field for field in table.schema().fields}
    folded = {
        name.lower() for name in stored
    }  # Delta ignores the case of every alphabet, DuckDB only of ASCII
    result = []
    for field in Schema.from_arrow(schema).fields:
        if field.name in stored:
            before, after = stored[field.name].type, field.type
            if before != after and after.type != _NO_TYPE:
                lossless = after.type in _LOSSLESS.get(str(before.type), ()) and field.name not in key
                result.append(ColumnChange(field.name, _word(before), _word(after), lossless))
        elif field.name.lower() in folded:
            result.append(ColumnChange(field.name, "", "", lossless=False))
    return result


def _word(delta_type: Any) -> str:
    if delta_type.type == "array":
        return f"list of {_word(delta_type.element_type)}"
    return _WORDS.get(delta_type.type, str(delta_type.type))
