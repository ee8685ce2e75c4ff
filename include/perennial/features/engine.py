"""The feature engine: one SQL definition for training, scoring and monitoring, in bounded memory.

``features.sql`` reads ``rows`` (the published rows, to which the model's feature sets have added their columns) and
the reference tables, and returns the key and one column per feature. The features of a row depend on that row and the
reference tables alone, so that any subset of the rows (a partition, a batch, one request) gives what the whole table
gives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, cast

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perennial.core.errors import DataError, SpecError
from perennial.core.sql import NUMERIC_SQL_TYPES, SQL_TYPES, quote_identifier, text_literal
from perennial.features import reference_tables
from perennial.features.scan_units import ParameterisedQuery
from perennial.spec.model_spec import FeatureSet, ModelSpec
from perennial.storage import delta_tables, duckdb_session

#: Rows that DuckDB hands over at a time; few enough for what is derived from them to stay in the processor's caches.
STREAM_ROWS = 8_192
#: SQL keywords without parentheses whose value changes from one run to the next. DuckDB does not list them among its
#: volatile functions.
_VOLATILE_KEYWORDS = {
    "current_date", "current_time", "current_timestamp", "localtime", "localtimestamp", "current_localtime",
    "current_localtimestamp", "current_user", "session_user", "user",
}  # fmt: skip
_SAMPLE = "a sample"


class FeatureQuery:
    """The features of one model at pinned versions of its reference tables.

    Args:
        spec: the model, as it was when it was trained.
        reference_versions: version of each reference table by name; the current ones, after their files were copied
            to the lake, when not given.
        folder: a folder of the lake whose files `stream` may read.
        checked: a query of the same spec and versions; its SQL is not checked again.
        connection: a connection that has the reference tables already and is locked down; made when not given.

    Attributes:
        columns: names of the features, in order.
        categorical: names of the features that are categories; all others are numbers.

    Raises:
        SpecError: the SQL does not work on the declared columns.
    """

    def __init__(
        self,
        spec: ModelSpec,
        reference_versions: dict[str, int] | None = None,
        folder: str | None = None,
        *,
        checked: FeatureQuery | None = None,
        connection: duckdb.DuckDBPyConnection | None = None,
    ) -> None:
        self.spec = spec
        if reference_versions is None:
            reference_versions = reference_tables.sync_to_lake(spec)
        self.reference_versions = reference_versions
        self._con = _connect(spec, reference_versions, folder) if connection is None else connection
        self._sql = compose_query(spec)
        self._relations: dict[str, duckdb.DuckDBPyRelation] = {}
        self.columns: list[str] = checked.columns if checked else self._check()
        self.categorical = list(spec.features.categorical)

    def compute(self, rows: pa.Table) -> pa.Table:
        """Compute the features of rows.

        Args:
            rows: published rows, any number of them.

        Returns:
            One row of features per row, in the same order, without the key.

        Raises:
            DataError: the SQL failed, or it lost, duplicated or renamed rows.
        """
        self._con.execute("DROP VIEW IF EXISTS published")
        self._con.register("published", rows.select(list(input_columns(self.spec))))
        try:
            keys = rows.select(list(self.spec.data.key))
            features = pa.concat_tables(self._ordered(lambda: self._con.sql(self._sql), keys))
        finally:
            self._con.unregister("published")
        return features.select(self.columns)

    def stream(self, source: ParameterisedQuery | pa.Table, keys: pa.Table) -> Iterator[pa.Table]:
        """Compute key and features of published rows in batches, each of them checked.

        Args:
            source: SQL that reads the rows, or the rows; a declared column that they lack is null.
            keys: the keys of the same rows, in the order wanted.

        Raises:
            DataError: while iterating: the SQL failed, or it lost, duplicated or renamed rows.
        """
        if isinstance(source, ParameterisedQuery):
            text = source.text
            for name, value in source.variables.items():
                self._con.execute(f"SET VARIABLE {quote_identifier(name)} = {value}")
        else:
            text = "SELECT * FROM source_rows"
            self._con.register("source_rows", source)
        return self._ordered(lambda: self._relation(text), keys)

    def check_rowwise(self, rows: pa.Table, *, single_row: bool = False) -> None:
        """Refuse SQL whose result for a row depends on the other rows.

        Compares the features of the first half and the second half, each computed alone, with what the same rows get
        among all rows.

        Args:
            rows: published rows.
            single_row: also compare the last row, computed alone. Training does not: for a single row DuckDB may swap
                the sides of a join, and a sum over a small reference table is then rounded in another order.

        Raises:
            SpecError: they differ.
            DataError: the SQL failed, or it lost, duplicated or renamed rows.
        """
        total, whole = len(rows), self.compute(rows)
        middle = total // 2
        parts = [(0, middle), (middle, total - middle)]
        if single_row:
            parts.append((max(total - 1, 0), 1))
        for start, length in parts:
            alone, within = self.compute(rows.slice(start, length)), whole.slice(start, length)
            for column in self.columns:
                if not _equal(alone.column(column), within.column(column)):
                    raise self._spec_error(
                        f"feature {column!r} of a row depends on the other rows",
                        "use no window or aggregate over rows: a partition must give what a year gives",
                    )

    def _check(self) -> list[str]:
        """The feature columns that the SQL returns.

        Raises:
            SpecError: they are not what the spec and this engine need.
        """
        types = describe_columns(self._con, self.spec, self._sql)
        key, categorical = self.spec.data.key, self.spec.features.categorical
        if missing := [k for k in key if k not in types]:
            raise self._spec_error(
                f"it does not return the key column {missing[0]!r}", "SELECT the key beside the features"
            )
        columns = [c for c in types if c not in key]
        if not columns:
            raise self._spec_error("it returns no feature", "SELECT at least one column beside the key")
        if reserved := sorted({"prediction", delta_tables.PARTITION} & set(columns)):
            raise self._spec_error(
                f"a feature is called {reserved[0]!r}, a name that Perennial uses", "give it another name"
            )
        if unknown := [c for c in categorical if c not in columns]:
            raise self._spec_error(
                f"features.categorical names {unknown[0]!r}, which it does not return",
                f"it returns: {', '.join(columns)}",
            )
        for column in columns:
            if column not in categorical and types[column].split("(")[0] not in NUMERIC_SQL_TYPES:
                raise self._spec_error(
                    f"feature {column!r} is a {types[column]}",
                    "name it in features.categorical, or turn it into a number",
                )
        return columns

    def _relation(self, text: str) -> duckdb.DuckDBPyRelation:
        """The features of the rows that the query ``text`` reads.

        Cached, since making a relation costs as much as the features of thousands of rows. Each time it is read,
        DuckDB looks up the variables, the files and their types again.
        """
        if text not in self._relations:
            columns = ", ".join(map(quote_identifier, input_columns(self.spec)))
            # A common table expression and no view: a view is planned when it is made and again when it is read.
            self._relations[text] = self._con.sql(
                f"WITH published AS NOT MATERIALIZED (SELECT {columns} FROM "
                f"(({text}) UNION ALL BY NAME ({empty_rows_sql(self.spec)}))) SELECT * FROM ({self._sql})"
            )
        return self._relations[text]

    def _ordered(self, relation: Callable[[], duckdb.DuckDBPyRelation], keys: pa.Table) -> Iterator[pa.Table]:
        """Key and features of rows in the order of ``keys``, the keys of these rows.

        Args:
            relation: gives the relation to read; called within the error handling.
        """
        try:
            reader = relation().to_arrow_reader(STREAM_ROWS)
            names, schema = list(keys.column_names), reader.schema
            wanted = pa.table([keys.column(k).cast(schema.field(k).type) for k in names], names=names)
            count = 0
            for batch in reader:
                part = pa.Table.from_batches([batch])
                if not part.select(names).equals(wanted.slice(count, len(part))):
                    # Rows in another order, or other rows: only the whole remainder tells which.
                    rest = pa.concat_tables([part, pa.Table.from_batches(list(reader), schema)])
                    self._check_count(len(keys), count + len(rest))
                    yield self._sort(rest, wanted.slice(count))
                    return
                count += len(part)
                yield part
            self._check_count(len(keys), count)
            if not count:
                yield schema.empty_table()
        except (duckdb.Error, pa.ArrowException, OSError) as error:  # Arrow raises later failures as OSError
            raise DataError(
                f"features.sql failed: {first_line(error, hide=bool(self.spec.data.personal))}",
                "mend the SQL, or add an expectation that keeps such rows out",
                model=self.spec.name,
            ) from error

    def _check_count(self, wanted: int, count: int) -> None:
        if wanted != count:
            raise self._row_error(f"{wanted} rows went in, {count} came out")

    def _sort(self, rows: pa.Table, wanted: pa.Table) -> pa.Table:
        """``rows`` in the order of the keys ``wanted``: not every join preserves the order."""

        def joined(table: pa.Table) -> pa.ChunkedArray[Any]:
            texts: list[Any] = [table.column(k).cast(pa.string()) for k in self.spec.data.key]
            keys = texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, "\x1f")
            return cast("pa.ChunkedArray[Any]", keys)

        positions: Any = pc.index_in(joined(wanted), value_set=joined(rows))
        if positions.null_count or pc.count_distinct(positions).as_py() != len(wanted):
            raise self._row_error("the keys that came out are not those that went in")
        return rows.take(positions.combine_chunks() if isinstance(positions, pa.ChunkedArray) else positions)

    def _spec_error(self, cause: str, remedy: str) -> SpecError:
        return SpecError(f"features.sql: {cause}", remedy, model=self.spec.name)

    def _row_error(self, cause: str) -> DataError:
        return DataError(
            f"features.sql: {cause}",
            "join reference tables by a unique key, do not filter: each row has its features once",
            model=self.spec.name,
        )


def _connect(
    spec: ModelSpec, reference_versions: dict[str, int], folder: str | None
) -> duckdb.DuckDBPyConnection:
    """A connection that can read the model's reference tables, the files of ``folder`` and nothing else."""
    # One thread: batches are small, and XGBoost, or the counting of drift, keeps the other cores busy.
    con = duckdb_session.connect(threads=1, memory_share=0.25)
    # Batches are used one by one; buffering ten MiB of them would take five times as much memory as helps.
    con.execute("SET streaming_buffer_size='2MiB'")
    # With it, a join keeps the last rows of a file back until the end, and all later rows have to be kept in memory
    # and sorted (duckdb 22191).
    con.execute("SET enable_caching_operators=false")
    reference_tables.load_into(con, spec, reference_versions)
    if folder:
        con.execute(f"SET allowed_directories=[{text_literal(folder)}]")
    con.execute("SET enable_external_access=false; SET lock_configuration=true")
    return con


def _equal(left: pa.ChunkedArray[Any], right: pa.ChunkedArray[Any]) -> bool:
    """Whether two columns hold the same values; NaN equals NaN, null equals null."""
    if left.equals(right) or not pa.types.is_floating(left.type):
        return bool(left.equals(right))
    same_nulls = left.is_null().equals(right.is_null())
    return bool(same_nulls and np.array_equal(left.to_numpy(), right.to_numpy(), equal_nan=True))


def compose_query(spec: ModelSpec) -> str:
    """Nest the SQL of a model: each of its parts reads the one before it as ``rows``.

    The parts are the feature sets, in order, and ``features.sql``; the first reads ``published``.
    """
    text = "SELECT * FROM published"
    for sql in (*(s.sql for s in spec.feature_sets), spec.sql):
        text = f"WITH rows AS NOT MATERIALIZED ({text}) SELECT * FROM (\n{sql.rstrip().rstrip(';')}\n)"
    return text


def input_columns(spec: ModelSpec) -> dict[str, str]:
    """The declared columns that the SQL may read, and their types: a label among the rows is left out."""
    label = spec.label.expression if spec.label.source is None else None
    return {column: kind for column, kind in spec.data.columns.items() if column != label}


def empty_rows_sql(spec: ModelSpec) -> str:
    """SQL that gives the `input_columns` with their types, and no rows."""
    columns = (
        f"CAST(NULL AS {SQL_TYPES[kind]}) AS {quote_identifier(column)}"
        for column, kind in input_columns(spec).items()
    )
    return f"SELECT {', '.join(columns)} LIMIT 0"


def describe_columns(con: duckdb.DuckDBPyConnection, spec: ModelSpec, text: str) -> dict[str, str]:
    """Names and types of the columns that a query gives for rows of the declared types.

    Args:
        con: a connection with the reference tables.
        spec: the model; the SQL of each of its parts is checked.
        text: its query, as `compose_query` gives it.

    Raises:
        SpecError: the SQL is wrong, or gives another result each time it runs.
    """
    con.execute(f"CREATE OR REPLACE TEMP VIEW published AS {empty_rows_sql(spec)}")
    try:
        parts: list[FeatureSet | ModelSpec] = [*spec.feature_sets, spec]
        for part in parts:
            _refuse_volatile(con, spec, f"{part.name}/features.sql", part.sql)
        return {str(r[0]): str(r[1]) for r in con.execute(f"DESCRIBE {text}").fetchall()}
    except duckdb.Error as error:
        raise SpecError(
            f"features.sql: {first_line(error)}",
            "the SQL reads rows and the reference tables "
            f"({', '.join(r.name for r in spec.references) or 'none'})",
            model=spec.name,
        ) from None
    finally:
        con.execute("DROP VIEW published")


def _refuse_volatile(con: duckdb.DuckDBPyConnection, spec: ModelSpec, where: str, sql: str) -> None:
    row = con.execute("SELECT json_serialize_sql(?)", [sql.rstrip().rstrip(";")]).fetchone()
    tree = json.loads(row[0]) if row else {}
    if tree.get("error"):
        raise SpecError(
            f"{where}: {tree.get('error_message')}", "one SELECT statement is needed", model=spec.name
        )
    if len(tree["statements"]) != 1:
        raise SpecError(
            f"{where}: {len(tree['statements'])} statements", "one SELECT is needed", model=spec.name
        )
    functions = con.execute(
        "SELECT DISTINCT lower(function_name) FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
    ).fetchall()
    volatile = {str(f[0]) for f in functions} | _VOLATILE_KEYWORDS | {_SAMPLE}
    volatile -= {"error", *spec.data.columns}
    if used := sorted(set(_names(tree)) & volatile):
        raise SpecError(
            f"{where}: {used[0]} gives another result each time",
            "use the row's event time, and all rows of a reference table",
            model=spec.name,
        )


def _names(node: object) -> Iterator[str]:
    """Functions and unqualified columns that a parsed query uses, and `_SAMPLE` where it draws a sample."""
    if isinstance(node, dict):
        name, columns = node.get("function_name"), node.get("column_names")
        if isinstance(name, str):
            # With one argument, age counts up to today.
            yield "today" if name.lower() == "age" and len(node.get("arguments", ())) == 1 else name.lower()
        if isinstance(columns, list) and len(columns) == 1:
            yield str(columns[0]).lower()
        if isinstance(node.get("sample"), dict):
            yield _SAMPLE
        for value in node.values():
            yield from _names(value)
    elif isinstance(node, list):
        for value in node:
            yield from _names(value)


def first_line(error: Exception, *, hide: bool = False) -> str:
    """The first line of an error's message; DuckDB's messages go on with the SQL.

    Args:
        error: the error.
        hide: leave out the values that it quotes, which may be personal data.
    """
    line = str(error).strip().split("\n")[0]
    return re.sub(r"'[^']*'?", "'…'", line) if hide else line
