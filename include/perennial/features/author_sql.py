"""The checker of all SQL that people write in a model folder: features, feature sets and labels.

It reads DuckDB's own parse tree and allows what is known to be harmless, so that a new function, clause or kind of
table is refused until somebody has added it: one SELECT (or one expression), over the tables handed to it, with
functions that depend on their arguments only. What passes runs in a connection that is locked by `duckdb_session.lock`,
so that a gap here does not open a file.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb

from perennial.core.errors import SpecError
from perennial.core.sql import INTERNAL_PREFIX, fold_identifier, quote_identifier
from perennial.features import sql_functions as functions
from perennial.spec.model_spec import FeatureSet, ModelSpec

__all__ = ["REMEDY", "Problem", "check_expression", "check_label", "check_model", "check_query", "label_sql", "line_of",
           "offset_of", "parse", "parts"]  # fmt: skip

#: What to do about SQL that is refused.
REMEDY = "use rows, the reference tables and the functions that include/models/README.md lists"
#: How often a query may read a table once its common table expressions and stars are written out.
MAX_READS = 1000
MAX_BYTES = 1 << 20
#: DuckDB gives the largest integer as the location of nodes that have none.
_NO_LOCATION = 1 << 62
_TOO_DEEP = (
    "it is nested too deeply: compute parts of it in common table expressions, or add a list with list_sum()"
)
_EXPRESSIONS = {
    "BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION", "LAMBDA",
    "OPERATOR", "TYPE",
}  # fmt: skip
_QUERY_EXPRESSIONS = _EXPRESSIONS | {"POSITIONAL_REFERENCE", "STAR", "SUBQUERY", "WINDOW"}
#: Parts that are not expressions; functions have an order, too.
_PARTS = {"ORDER_MODIFIER", "ASCENDING", "DESCENDING", "ORDER_DEFAULT"}
_QUERY_PARTS = _PARTS | {
    "BASE_TABLE", "DISTINCT_MODIFIER", "EMPTY", "EXPRESSION_LIST", "JOIN", "LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER",
    "SELECT_NODE", "SET_OPERATION_NODE", "SUBQUERY", "TABLE_FUNCTION",
}  # fmt: skip
_REFUSED_PARTS = {
    "RECURSIVE_CTE_NODE": "WITH RECURSIVE",
    "SHOW_REF": "DESCRIBE, SHOW or SUMMARIZE",
    "PIVOT": "PIVOT or UNPIVOT",
    "PARAMETER": "a parameter",
    "SUBQUERY": "a subquery",
    "WINDOW": "a window function",
    "STAR": "a star",
}


@dataclass(frozen=True)
class Problem:
    """Something that the SQL must not do.

    Attributes:
        line: line in its file, from 1; None if not known.
        message: what it is.
    """

    line: int | None
    message: str


class _RefusedError(Exception):
    """Part of a parse tree that is refused: its offset in the SQL (None if not known), and why."""

    def __init__(self, offset: int | None, message: str) -> None:
        super().__init__(message)
        self.offset, self.message = offset, message


def parts(spec: ModelSpec) -> list[tuple[str, str]]:
    """The SQL of a model's features, in the order in which it runs: file as ``[feature set/]features.sql``, text."""
    sets: list[FeatureSet] = list(spec.feature_sets)
    return [*((f"{s.name}/features.sql", s.sql) for s in sets), ("features.sql", spec.sql)]


def check_model(con: duckdb.DuckDBPyConnection, spec: ModelSpec) -> None:
    """Check the SQL of a model's features and of its feature sets.

    Args:
        con: any connection; only its parser is used.
        spec: the model.

    Raises:
        SpecError: a part of it is refused.
    """
    for where, sql in parts(spec):
        if problem := check_part(con, spec, sql):
            at = f"{where}:{problem.line}" if problem.line else where
            raise SpecError(f"{at}: {problem.message}", REMEDY, model=spec.name)


def check_part(con: duckdb.DuckDBPyConnection, spec: ModelSpec, sql: str) -> Problem | None:
    """The first problem of a part of a model's SQL; None if it may run."""
    columns = {**spec.data.columns, **spec.table_columns}
    return check_query(con, sql, {r.name for r in spec.references}, columns)


def check_label(con: duckdb.DuckDBPyConnection, spec: ModelSpec) -> None:
    """Check the SQL of a model's label; the name of a column is none.

    Args:
        con: any connection; only its parser is used.
        spec: the model.

    Raises:
        SpecError: it is refused.
    """
    expression, columns = spec.label.expression, spec.label.columns
    if spec.label.source and (problem := check_expression(con, expression, columns)):
        raise SpecError(
            f"model.yaml: label.expression {expression!r} is refused: {problem.message}",
            f"write one expression over {', '.join(columns)}, with functions that include/models/README.md lists",
            model=spec.name,
        )


def label_sql(spec: ModelSpec) -> str:
    """SQL of the label over the columns of its rows; `check_label` must have allowed it."""
    # On a line of its own, because it may hold a comment.
    return (
        f"(\n{statement(spec.label.expression)}\n)"
        if spec.label.source
        else quote_identifier(spec.label.expression)
    )


def statement(sql: str) -> str:
    """The SQL without the semicolons and comments at its end, so that it can stand within other SQL.

    What stays has the same lines. A semicolon between two statements, or within a text, stays.
    """
    try:
        content = sql.encode()
        tokens = duckdb.tokenize(sql)
    except (UnicodeError, TypeError, duckdb.Error):  # the parser names the problem
        return sql
    starts = [*(start for start, _ in tokens), len(content)]
    texts = [content[start:end].strip() for start, end in itertools.pairwise(starts)]
    count = len(tokens)
    while count and (tokens[count - 1][1] == duckdb.token_type.comment or texts[count - 1] == b";"):
        if texts[count - 1].startswith(b"/*") and not texts[count - 1].endswith(b"*/"):
            return sql
        count -= 1
    return content[: starts[count]].decode().rstrip() if count else sql


def check_query(
    con: duckdb.DuckDBPyConnection, sql: str, tables: Collection[str], columns: Collection[str]
) -> Problem | None:
    """Check the SQL of features.

    Args:
        con: any connection; only its parser is used.
        sql: one SELECT over ``rows`` and the tables.
        tables: names of the reference tables.
        columns: columns of ``rows``.

    Returns:
        The first problem; None if the SQL may run.
    """
    tree = parse(con, sql)
    if isinstance(tree, Problem):
        return tree
    try:
        _Checker(columns, in_query=True).check(tree, frozenset({"rows", *map(fold_identifier, tables)}))
        if _reads(tree, {}) > MAX_READS:
            raise _RefusedError(
                None,
                f"it reads tables more than {MAX_READS} times, with common table expressions written out",
            )
    except _RefusedError as error:
        return Problem(line_of(sql, error.offset), error.message)
    except RecursionError:
        return Problem(None, _TOO_DEEP)
    return None


def check_expression(con: duckdb.DuckDBPyConnection, sql: str, columns: Collection[str]) -> Problem | None:
    """Check the SQL of a label: one expression over the columns of a row.

    Args:
        con: any connection; only its parser is used.
        sql: the expression.
        columns: columns of the row.

    Returns:
        The first problem; None if the expression may run, in parentheses on lines of their own.
    """
    # Both ways, because neither ") FROM other_table SELECT (" nor "x FROM other_table" is one expression.
    sql = statement(sql)
    texts = (f"SELECT\n{sql}\n", f"SELECT (\n{sql}\n)")
    trees = [parse(con, text, needed="one expression is needed") for text in texts]
    for tree in trees:
        if isinstance(tree, Problem):
            return Problem(None, tree.message)
    bare, enclosed = (_without_locations(tree) for tree in trees)
    expressions = enclosed.get("select_list", [])
    # Everything else that a SELECT can have is missing, as in this one.
    plain = _without_locations(parse(con, "SELECT 1")) | {"select_list": expressions}
    if bare != enclosed or enclosed != plain or len(expressions) != 1 or expressions[0].get("alias"):
        return Problem(None, "it is not one expression")
    try:
        _Checker(columns, in_query=False).check(expressions[0], frozenset())
    except _RefusedError as error:
        return Problem(None, error.message)
    except RecursionError:
        return Problem(None, _TOO_DEEP)
    return None


def parse(
    con: duckdb.DuckDBPyConnection, sql: str, needed: str = "one SELECT statement is needed"
) -> dict[str, Any] | Problem:
    """Parse one SELECT.

    Args:
        con: any connection.
        sql: the statement; semicolons and comments at its end are ignored.
        needed: added to the message of the parser.

    Returns:
        The query node of DuckDB's parse tree, or what is wrong.
    """
    try:
        if len(sql.encode()) > MAX_BYTES:
            return Problem(None, f"it is longer than {MAX_BYTES >> 20} MiB")
        # All rows: an unfinished result would keep the connection from registering a table.
        rows = con.execute("SELECT json_serialize_sql(?)", [statement(sql)]).fetchall()
        tree = json.loads(rows[0][0]) if rows else {}
    except UnicodeError:
        return Problem(None, "it is not valid text")
    except (RecursionError, duckdb.Error):
        return Problem(None, _TOO_DEEP)
    if tree.get("error"):
        position = tree.get("position")
        line = line_of(sql, int(position)) if position else None
        return Problem(line, f"{tree.get('error_message')} ({needed})")
    statements = tree.get("statements", [])
    if len(statements) != 1:
        return Problem(None, f"{len(statements)} statements; one SELECT is needed")
    node: dict[str, Any] = statements[0]["node"]
    return node


class _Checker:
    """Walks a parse tree and raises `_RefusedError` at the first node that is not allowed."""

    def __init__(self, columns: Collection[str], *, in_query: bool) -> None:
        self._columns = set(map(fold_identifier, columns))
        self._in_query = in_query
        self._classes = _QUERY_EXPRESSIONS if in_query else _EXPRESSIONS
        self._parts = _QUERY_PARTS if in_query else _PARTS

    def check(self, node: Any, tables: frozenset[str], *, in_lambda: bool = False) -> None:
        """Check a node and everything below it.

        Args:
            node: the node.
            tables: lower-case names of the tables and common table expressions that it may read.
            in_lambda: whether it is evaluated for each item of a list.
        """
        if isinstance(node, list):
            for item in node:
                self.check(item, tables, in_lambda=in_lambda)
        if not isinstance(node, dict):
            return
        kind, class_ = node.get("type"), node.get("class")
        if class_ is not None:
            self._check_expression(node, in_lambda)
        elif isinstance(kind, str):
            self._check_part(node, kind, tables)
        if _is_reserved(node.get("alias")):
            raise _RefusedError(
                offset_of(node), f"{node['alias']}: names that begin with {INTERNAL_PREFIX} are reserved"
            )
        for item in (node.get("cte_map") or {}).get("map", []):
            name = fold_identifier(str(item["key"]))
            if _is_reserved(name):
                raise _RefusedError(None, f"{name}: names that begin with {INTERNAL_PREFIX} are reserved")
            self.check(item["value"]["query_node"], tables)
            tables |= {name}
        for key, value in node.items():
            # The literal of a constant may be any text.
            if key not in ("cte_map", "literal"):
                self.check(value, tables, in_lambda=in_lambda or class_ == "LAMBDA")

    def _check_expression(self, node: dict[str, Any], in_lambda: bool) -> None:
        class_ = node["class"]
        if class_ not in self._classes:
            what = _REFUSED_PARTS.get(class_, f"an expression of type {class_}")
            raise _RefusedError(offset_of(node), f"{what} is not allowed here")
        if class_ in ("FUNCTION", "WINDOW"):
            self._check_function(node, in_lambda)
        if class_ == "COLUMN_REF":
            names = [str(n) for n in node["column_names"]]
            if any(map(_is_reserved, names)):
                raise _RefusedError(
                    offset_of(node),
                    f"{'.'.join(names)}: names that begin with {INTERNAL_PREFIX} are reserved",
                )
            # DuckDB evaluates some functions without parentheses, unless there is a column of that name.
            single = fold_identifier(names[0]) if len(names) == 1 else ""
            if single in functions.NOT_DETERMINISTIC - self._columns:
                raise _RefusedError(offset_of(node), _reason(single))

    def _check_function(self, node: dict[str, Any], in_lambda: bool) -> None:
        name, arguments = (
            str(node["function_name"]).lower(),
            node.get("arguments") or node.get("children") or [],
        )
        allowed = functions.SCALARS
        if self._in_query:
            allowed = allowed | functions.AGGREGATES | {"unnest"}
        if node["class"] == "WINDOW":
            allowed = functions.AGGREGATES | functions.WINDOWS
        if name not in allowed:
            raise _RefusedError(offset_of(node), _reason(name))
        # With one argument, age depends on the current date.
        if name == "age" and len(arguments) < 2:
            raise _RefusedError(offset_of(node), _reason("age", "with one argument "))
        if name in functions.SIZED:
            sizes = [arguments[i] for i in functions.SIZED[name] if i < len(arguments)]
            # text.lpad(5) has its first argument elsewhere
            chained = bool(node.get("schema") or node.get("catalog"))
            if chained or in_lambda or not sizes or not all(map(_is_small_number, sizes)):
                raise _RefusedError(
                    offset_of(node),
                    f"{name}() may be as long as whole numbers say that stand in the SQL, at most "
                    f"{functions.LITERAL_LIMIT}, outside of lambda functions",
                )

    def _check_part(self, node: dict[str, Any], kind: str, tables: frozenset[str]) -> None:
        if kind not in self._parts:
            raise _RefusedError(offset_of(node), f"{_REFUSED_PARTS.get(kind, kind)} is not allowed here")
        if node.get("sample"):
            raise _RefusedError(offset_of(node), "a sample is not deterministic: read all rows")
        if kind == "BASE_TABLE":
            name = str(node.get("table_name"))
            qualified = [str(node.get(k)) for k in ("catalog_name", "schema_name") if node.get(k)]
            path = (node.get("qualified_name") or {}).get("path") or [name]
            if qualified or len(path) > 1 or node.get("at_clause") or fold_identifier(name) not in tables:
                shown = ".".join(map(str, path if len(path) > 1 else [*qualified, name]))
                raise _RefusedError(
                    offset_of(node),
                    f"{shown} is not a table of this model; there are: {', '.join(sorted(tables))}",
                )
        if kind == "TABLE_FUNCTION":
            name = str(node["function"].get("function_name")).lower()
            if name not in functions.ROW_SOURCES:
                raise _RefusedError(offset_of(node), _reason(name))
        if kind == "JOIN" and node.get("ref_type") == "POSITIONAL":
            raise _RefusedError(offset_of(node), "POSITIONAL JOIN is not deterministic: join by a key")


def _reason(name: str, how: str = "") -> str:
    if name in functions.NOT_DETERMINISTIC or how:
        return f"{name} {how}is not deterministic: it depends on the moment, the session or chance"
    return f"{name}() is not one of the functions that this SQL may use"


def _is_reserved(name: Any) -> bool:
    return isinstance(name, str) and name.startswith(INTERNAL_PREFIX)


def _is_small_number(argument: Any) -> bool:
    """Whether an argument of a function is a whole number in the SQL, from -`LITERAL_LIMIT` to `LITERAL_LIMIT`."""
    node = argument.get("expression", argument)
    if node.get("class") == "FUNCTION" and node.get("function_name") == "-" and len(node["arguments"]) == 1:
        return _is_small_number(node["arguments"][0])
    literal = node.get("literal") or {}
    text = str(literal.get("text", ""))
    return literal.get("kind") == "INTEGER" and text.isdigit() and int(text) <= functions.LITERAL_LIMIT


def _reads(node: Any, ctes: Mapping[str, int]) -> int:
    """How often a query reads a table once its common table expressions and repeated stars are written out.

    DuckDB plans it written out. A few lines that refer to each other twice would never be planned to their end.
    """
    if isinstance(node, list):
        return sum(_reads(item, ctes) for item in node)
    if not isinstance(node, dict):
        return 0
    for item in (node.get("cte_map") or {}).get("map", []):
        ctes = {**ctes, fold_identifier(str(item["key"])): _reads(item["value"]["query_node"], ctes)}
    if node.get("type") == "BASE_TABLE":
        return max(1, ctes.get(fold_identifier(str(node.get("table_name"))), 1))
    total = sum(_reads(value, ctes) for key, value in node.items() if key != "cte_map")
    stars = Counter(_stars(node.get("select_list")))
    repeated = stars.pop("", 0) + max(stars.values(), default=0)
    return total * max(1, repeated)


def _stars(node: Any) -> Iterator[str]:
    """The relation of each star of a SELECT list, empty for all relations."""
    if isinstance(node, list):
        for item in node:
            yield from _stars(item)
    elif isinstance(node, dict) and node.get("class") != "SUBQUERY":
        if node.get("class") == "STAR":
            yield str(node.get("relation_name") or "")
            return
        for value in node.values():
            yield from _stars(value)


def line_of(sql: str, offset: int | None) -> int | None:
    """The line of an offset in bytes, from 1."""
    return None if offset is None else sql.encode(errors="replace").count(b"\n", 0, offset) + 1


def offset_of(part: Any) -> int | None:
    """The offset in the SQL of the first node within ``part`` that has one."""
    if isinstance(part, dict):
        if isinstance(offset := part.get("query_location"), int) and offset < _NO_LOCATION:
            return offset
        part = list(part.values())
    if isinstance(part, list):
        return next((offset for value in part if (offset := offset_of(value)) is not None), None)
    return None


def _without_locations(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _without_locations(v) for k, v in node.items() if not k.startswith("query_location")}
    return [_without_locations(item) for item in node] if isinstance(node, list) else node
