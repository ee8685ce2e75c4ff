"""Which personal columns each feature depends on, by DuckDB's plan of the SQL.

DuckDB has resolved names, stars, aliases, views and common table expressions in its plan, so that a column can be
followed from the result back to the tables. A value depends on a column that it is computed from, that decides which
row of a table it is taken from (a join, a filter, an order) or that its group is formed by. A value that is computed
from no column, such as ``count(*)``, depends on what decides which rows there are. What joins only add to is unchanged:
the rows' own columns do not depend on the condition of a join with a reference table. Where the plan has an operator
that is not known here, every result depends on every personal column.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import duckdb

from perennial.core.errors import SpecError
from perennial.core.sql import SQL_TYPES, quote_identifier, text_literal
from perennial.features import author_sql
from perennial.spec.model_spec import ModelSpec
from perennial.storage import duckdb_session

Sources = frozenset[str]
#: Marks a scan of the rows.
ROWS = "__published"
_NOTHING: Sources = frozenset()
_KEEPS_LEFT = ("LEFT", "SINGLE")
#: Joins whose result has exactly the rows of the left side.
_ROWS_OF_LEFT = ("SINGLE", "MARK")
_KEEPS_RIGHT = ("RIGHT",)
_JOINS = (
    "LOGICAL_COMPARISON_JOIN", "LOGICAL_ASOF_JOIN", "LOGICAL_ANY_JOIN", "LOGICAL_DELIM_JOIN", "LOGICAL_CROSS_PRODUCT",
    "LOGICAL_DEPENDENT_JOIN",
)  # fmt: skip


class _UnknownPlanError(Exception):
    """The plan has something that this module does not know."""


@dataclass(frozen=True)
class _Relation:
    """The result of one operator.

    Attributes:
        columns: the personal columns that each of its columns depends on.
        reads_rows: whether it reads the rows, and not reference tables alone.
        rows: the personal columns that decide which rows it has.
    """

    columns: list[Sources]
    reads_rows: bool = False
    rows: Sources = _NOTHING

    def depends_on(self, sources: Sources) -> _Relation:
        """The same, each column and which rows it has depending on some more columns."""
        return replace(self, columns=[c | sources for c in self.columns], rows=self.rows | sources)

    def select(self, positions: list[int]) -> _Relation:
        """Some of its columns; all if no positions are given."""
        return replace(self, columns=[self.columns[i] for i in positions]) if positions else self


def personal_sources(
    tables: Mapping[str, Mapping[str, str]], personal: Mapping[str, Iterable[str]], query: str
) -> list[list[str]]:
    """The personal columns that each column of a query's result depends on.

    Args:
        tables: SQL types of the columns of each table that the query may read.
        personal: personal columns of each table.
        query: a SELECT that can be bound on these tables.

    Returns:
        For each column of the result the names of columns, with those of their tables except for `ROWS`.

    Raises:
        TimeoutError: DuckDB could not plan the query in time.
    """
    marked = {t: {c: c if t == ROWS else f"{t}.{c}" for c in columns} for t, columns in personal.items()}
    everything = sorted(name for columns in marked.values() for name in columns.values())
    with duckdb.connect(config={"autoinstall_known_extensions": False, "threads": 1}) as con:
        con.execute("SET TimeZone='UTC'")
        for table, columns in tables.items():
            listed = ", ".join(f"{quote_identifier(c)} {kind}" for c, kind in columns.items())
            con.execute(f"CREATE TEMP TABLE {quote_identifier(table)} ({listed})")
        duckdb_session.lock(con)
        with duckdb_session.time_limit(con):
            width = len(con.execute(f"DESCRIBE {query}").fetchall())
            row = con.execute("SELECT json_serialize_plan(?, optimize := false)", [query]).fetchone()
    try:
        (plan,) = json.loads(row[0] if row else "{}")["plans"]
        traced = _Trace(marked).relation(plan)
        result = [c | traced.rows for c in traced.columns]
        if len(result) != width:
            raise _UnknownPlanError
    except (_UnknownPlanError, KeyError, IndexError, TypeError, ValueError, RecursionError):
        return [everything] * width
    return [sorted(sources) for sources in result]


def personal_features(
    con: duckdb.DuckDBPyConnection, spec: ModelSpec, columns: Iterable[str], query: str
) -> dict[str, list[str]]:
    """The features that depend on personal columns, and which ones.

    Args:
        con: a connection with the model's reference tables.
        spec: the model.
        columns: the columns that the query returns.
        query: its query, as returned by `engine.compose_query`.

    Raises:
        SpecError: DuckDB could not plan the query in time.
    """
    if not spec.hides_values:
        return {}
    joined = [join.prefix + c for join, table in spec.feature_tables for c in table.personal]
    personal = {ROWS: [*spec.personal_columns, *joined]} | {r.name: r.personal for r in spec.references}
    return _sources_by_column(con, spec, columns, query, personal)


def table_features(
    con: duckdb.DuckDBPyConnection, spec: ModelSpec, columns: Iterable[str], query: str
) -> dict[str, list[str]]:
    """The features that depend on columns of feature tables, and which ones, with the prefixes of their joins.

    Takes and raises the same as `personal_features`.
    """
    return _sources_by_column(con, spec, columns, query, {ROWS: [*spec.table_columns]})


def feature_sources(
    con: duckdb.DuckDBPyConnection, spec: ModelSpec, columns: Iterable[str], query: str
) -> dict[str, list[str]] | None:
    """The columns of rows and reference tables that each feature depends on; None if the plan cannot be followed.

    Takes and raises the same as `personal_features`.
    """
    every = {ROWS: [*spec.data.columns, *spec.table_columns]}
    every |= {reference.name: [*_types(con, reference.name)] for reference in spec.references}
    sources = _sources_by_column(con, spec, columns, query, every)
    total = sum(map(len, every.values()))
    return None if sources and all(len(names) == total for names in sources.values()) else sources


def _sources_by_column(
    con: duckdb.DuckDBPyConnection,
    spec: ModelSpec,
    columns: Iterable[str],
    query: str,
    marked: Mapping[str, Iterable[str]],
) -> dict[str, list[str]]:
    """The marked columns, by table, that each column of the query's result depends on, if it depends on any."""
    columns_of_rows = {**spec.data.columns, **spec.table_columns}
    tables = {ROWS: {c: SQL_TYPES[kind] for c, kind in columns_of_rows.items()}}
    tables |= {reference.name: _types(con, reference.name) for reference in spec.references}
    try:
        sources = personal_sources(tables, _present(tables, marked), query)
    except TimeoutError as error:
        raise planning_error(spec, "features.sql", error) from error
    return {c: names for c, names in zip(columns, sources, strict=True) if names}


def planning_error(spec: ModelSpec, where: str, error: TimeoutError) -> SpecError:
    """The error of SQL that DuckDB could not plan in time."""
    return SpecError(
        f"{where}: {error} while it was planned", "simplify the SQL, for example its nesting", model=spec.name
    )


def label_sources(spec: ModelSpec) -> list[str]:
    """The personal columns that the label depends on.

    Raises:
        SpecError: `author_sql` refuses the expression, or DuckDB could not plan it in time.
    """
    columns = spec.label.columns if spec.label.source else spec.data.columns
    tables = {ROWS: {c: SQL_TYPES[kind] for c, kind in columns.items()}}
    personal = _present(tables, {ROWS: spec.personal_columns})
    with duckdb.connect() as con:
        author_sql.check_label(con, spec)
    try:
        return personal_sources(tables, personal, f"SELECT {author_sql.label_sql(spec)} FROM {ROWS}")[0]
    except TimeoutError as error:
        raise planning_error(spec, "label.expression", error) from error


def check_label(spec: ModelSpec) -> None:
    """Refuse classes that are personal data: the model file, its metrics and its reports name them.

    Raises:
        SpecError: the label of a multiclass task depends on personal columns.
    """
    if spec.task == "multiclass" and (sources := label_sources(spec)):
        raise SpecError(
            f"model.yaml: label.expression depends on personal data ({', '.join(sources)}), and the model file names "
            "the classes",
            "compute classes from other columns, or predict a number or a condition",
            model=spec.name,
        )


def _types(con: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    rows = con.execute(
        f"SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = {text_literal(table)}"
    ).fetchall()
    return {str(name): str(kind) for name, kind in rows}


def _present(
    tables: Mapping[str, Mapping[str, str]], personal: Mapping[str, Iterable[str]]
) -> dict[str, list[str]]:
    """The personal columns that the tables have; names are compared without case, as SQL does."""
    lower = {table: {name.lower() for name in names} for table, names in personal.items()}
    return {t: [c for c in columns if c.lower() in lower.get(t, ())] for t, columns in tables.items()}


@dataclass
class _Trace:
    """Follows columns through a plan.

    Attributes:
        marked: name of each personal column, by table and column.
        shared: common table expressions, by index.
        correlated: columns of the outer query that the subquery at hand reads, the innermost last.
    """

    marked: Mapping[str, Mapping[str, str]]
    shared: dict[int, _Relation] = field(default_factory=dict)
    correlated: list[list[Sources]] = field(default_factory=list)

    def relation(self, node: Any) -> _Relation:
        """The result of an operator of the plan."""
        kind = node["type"]
        if kind in _JOINS:
            return self._join(node)
        operator = _OPERATORS.get(kind)
        if operator is None:
            raise _UnknownPlanError(kind)
        return operator(self, node)

    def _only(self, node: Any) -> _Relation:
        (child,) = node["children"]
        return self.relation(child)

    def _get(self, node: Any) -> _Relation:
        if node["children"]:  # a function of the rows of another relation
            raise _UnknownPlanError
        table = str((node.get("function_data") or {}).get("table"))
        marked, names = self.marked.get(table, {}), node["names"]
        read = [item["index"] for item in node["column_indexes"]] or list(range(len(names)))
        # beyond the columns is the number of the row
        columns = [
            frozenset({marked[names[i]]} if i < len(names) and names[i] in marked else ()) for i in read
        ]
        return _Relation(columns, table == ROWS).select(node.get("projection_ids") or [])

    def _constants(self, node: Any) -> _Relation:
        width = len(node.get("expr_types") or node.get("chunk_types") or [None])
        rows = [_of(row, []) for row in node.get("expressions") or []]
        if any(rows) or (node["children"] and any(self._only(node).columns)):
            raise _UnknownPlanError
        return _Relation([_NOTHING] * width)

    def _projection(self, node: Any) -> _Relation:
        child = self._only(node)
        columns = [_of(e, child.columns) | child.rows for e in node["expressions"]]
        return replace(child, columns=columns)

    def _filter(self, node: Any) -> _Relation:
        child = self._only(node)
        return child.depends_on(_of(node["expressions"], child.columns)).select(
            node.get("projection_map") or []
        )

    def _order(self, node: Any) -> _Relation:
        child = self._only(node)
        return child.depends_on(_of(node["orders"], child.columns)).select(node.get("projection_map") or [])

    def _limit(self, node: Any) -> _Relation:
        child = self._only(node)
        limits = [v for k, v in node.items() if k not in ("children", "type")]
        return child.depends_on(_of(limits, child.columns))

    def _distinct(self, node: Any) -> _Relation:
        child = self._only(node)
        if "ON" not in str(node["distinct_type"]):
            return replace(child, rows=child.rows.union(*child.columns))
        chosen = [v for k, v in node.items() if k not in ("children", "type")]
        return child.depends_on(_of(chosen, child.columns))

    def _aggregate(self, node: Any) -> _Relation:
        child = self._only(node)
        groups = [_of(e, child.columns) | child.rows for e in node["groups"]]
        every = child.rows.union(*groups)
        values = [_of(e, child.columns) | every for e in node["expressions"]]
        groupings = [every] * len(node.get("grouping_functions") or [])
        # Without groups there is exactly one row.
        return _Relation([*groups, *values, *groupings], child.reads_rows, every if groups else _NOTHING)

    def _append(self, node: Any) -> _Relation:
        """Window functions and UNNEST add columns."""
        child = self._only(node)
        added = [_of(e, child.columns) | child.rows for e in node["expressions"]]
        # UNNEST makes as many rows as a list has values.
        rows = child.rows if node["type"] == "LOGICAL_WINDOW" else child.rows.union(*added)
        return _Relation([*child.columns, *added], child.reads_rows, rows)

    def _set_operation(self, node: Any) -> _Relation:
        children = [self.relation(child) for child in node["children"]]
        if len({len(c.columns) for c in children}) != 1:
            raise _UnknownPlanError
        columns = [_NOTHING.union(*parts) for parts in zip(*(c.columns for c in children), strict=True)]
        rows = _NOTHING.union(*(c.rows for c in children))
        union = node["type"] == "LOGICAL_UNION"
        if not union:  # which rows remain depends on all columns
            columns = [_NOTHING.union(*columns)] * len(columns)
        if not (union and node["setop_all"]):
            rows = rows.union(*columns)
        return _Relation(columns, any(c.reads_rows for c in children), rows)

    def _materialized_cte(self, node: Any) -> _Relation:
        definition, query = node["children"]
        self.shared[node["table_index"]] = self.relation(definition)
        return self.relation(query)

    def _cte_ref(self, node: Any) -> _Relation:
        return self.shared[node["cte_index"]]

    def _delim_get(self, node: Any) -> _Relation:
        return _Relation(self.correlated[-1])

    def _join(self, node: Any) -> _Relation:
        left = self.relation(node["children"][0])
        delimited = node.get("duplicate_eliminated_columns") or []
        if delimited:
            if node.get("delim_flipped"):
                raise _UnknownPlanError
            self.correlated.append([_of(e, left.columns) for e in delimited])
        right = self.relation(node["children"][1])
        if delimited:
            self.correlated.pop()
        kind = str(node.get("join_type", "INNER"))
        condition = _condition(node, left, right)
        joined = _joined(kind, left, right, condition)
        left_columns = joined[0].select(node.get("left_projection_map") or []).columns
        rows = joined[2]
        if kind in ("SEMI", "ANTI"):
            return _Relation(left_columns, left.reads_rows, rows)
        if kind == "MARK":
            return _Relation([*left_columns, condition | right.rows], left.reads_rows, rows)
        right_columns = joined[1].select(node.get("right_projection_map") or []).columns
        return _Relation([*left_columns, *right_columns], left.reads_rows or right.reads_rows, rows)


def _joined(
    kind: str, left: _Relation, right: _Relation, condition: Sources
) -> tuple[_Relation, _Relation, Sources]:
    """Both sides of a join, and what decides which rows it has.

    A side depends on the condition, and on what decides which rows it has, unless the join keeps its rows as they are.
    An inner join with a table that does not read the rows keeps them, because the engine refuses SQL that loses rows.
    """
    keeps_left = kind in (*_KEEPS_LEFT, "MARK") or (
        kind == "INNER" and left.reads_rows and not right.reads_rows
    )
    keeps_right = kind in _KEEPS_RIGHT or (kind == "INNER" and right.reads_rows and not left.reads_rows)
    if kind not in ("INNER", "LEFT", "RIGHT", "OUTER", "SINGLE", "MARK", "SEMI", "ANTI"):
        raise _UnknownPlanError(kind)
    if kind in _ROWS_OF_LEFT or (keeps_left and left.reads_rows):
        rows = left.rows
    elif keeps_right and right.reads_rows:
        rows = right.rows
    else:
        rows = left.rows | right.rows | condition
    return (
        left if keeps_left else left.depends_on(condition | left.rows),
        right if keeps_right else right.depends_on(condition | right.rows),
        rows,
    )


def _condition(node: Any, left: _Relation, right: _Relation) -> Sources:
    """The sources of a join's condition."""
    both = [*left.columns, *right.columns]
    sources = _of(node.get("condition"), both)
    for item in node.get("conditions") or []:
        if set(item) >= {"left", "right"}:
            sources |= _of(item["left"], left.columns) | _of(item["right"], right.columns)
        else:
            sources |= _of(item, both)
    return sources


def _of(expression: Any, columns: list[Sources]) -> Sources:
    """The sources of an expression (or several, as JSON) over the columns of an operator's input."""
    return _NOTHING.union(*(columns[i] for i in _references(expression)))


def _references(expression: Any) -> Iterator[int]:
    """The positions of the input's columns that an expression reads."""
    if isinstance(expression, dict):
        kind = expression.get("expression_class")
        if kind == "BOUND_REF":
            yield int(expression["index"])
        elif kind in ("BOUND_COLUMN_REF", "BOUND_SUBQUERY"):
            raise _UnknownPlanError(kind)
        for key, value in expression.items():
            # These refer to arguments of the function; columns that a lambda uses are among the function's children.
            if key not in ("function_data", "lambda_expr"):
                yield from _references(value)
    elif isinstance(expression, list):
        for value in expression:
            yield from _references(value)


#: How the result of each operator is traced, by its name in the plan.
_OPERATORS: dict[str, Callable[[_Trace, Any], _Relation]] = {
    "LOGICAL_GET": _Trace._get,
    "LOGICAL_DUMMY_SCAN": _Trace._constants,
    "LOGICAL_EXPRESSION_GET": _Trace._constants,
    "LOGICAL_EMPTY_RESULT": _Trace._constants,
    "LOGICAL_PROJECTION": _Trace._projection,
    "LOGICAL_FILTER": _Trace._filter,
    "LOGICAL_ORDER_BY": _Trace._order,
    "LOGICAL_TOP_N": _Trace._order,
    "LOGICAL_LIMIT": _Trace._limit,
    "LOGICAL_DISTINCT": _Trace._distinct,
    "LOGICAL_AGGREGATE_AND_GROUP_BY": _Trace._aggregate,
    "LOGICAL_WINDOW": _Trace._append,
    "LOGICAL_UNNEST": _Trace._append,
    "LOGICAL_UNION": _Trace._set_operation,
    "LOGICAL_EXCEPT": _Trace._set_operation,
    "LOGICAL_INTERSECT": _Trace._set_operation,
    "LOGICAL_MATERIALIZED_CTE": _Trace._materialized_cte,
    "LOGICAL_CTE_REF": _Trace._cte_ref,
    "LOGICAL_DELIM_GET": _Trace._delim_get,
}
