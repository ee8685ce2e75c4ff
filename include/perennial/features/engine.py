"""The feature engine: one SQL definition for training, scoring and monitoring, in bounded memory.

``features.sql`` reads ``rows`` (the published rows, to which the model's feature sets have added their columns) and
the reference tables, and returns the key and one column per feature. The features of a row depend only on that row and
the reference tables, so that any subset of the rows (a partition, a batch, one request) gets the same features as in
the whole table.
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

#: Rows that DuckDB returns at a time; few enough that they and their features fit in the processor's caches.
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
        spec: the spec that the model was trained with.
        reference_versions: version of each reference table by name; when not given, their files are copied to the
            lake and the current versions are used.
        folder: a folder of the lake whose files `stream` may read.
        checked: a query of the same spec and versions; its SQL is not checked again.
        connection: a locked-down connection that has the reference tables; created when not given.

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
            rows: published rows.

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
        """Compute key and features of published rows in batches, and check the keys of each batch.

        Args:
            source: SQL that reads the rows, or the rows; a declared column that is missing is null.
            keys: the keys of the same rows, in the order of the result.

        Raises:
            DataError: raised while iterating: the SQL failed, or it lost, duplicated or renamed rows.
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
            SpecError: a feature differs.
            DataError: the SQL failed, or it lost, duplicated or renamed rows.
        """
        total, features = len(rows), self.compute(rows)
        middle = total // 2
        parts = [(0, middle), (middle, total - middle)]
        if single_row:
            parts.append((max(total - 1, 0), 1))
        for start, length in parts:
            separate, expected = self.compute(rows.slice(start, length)), features.slice(start, length)
            for column in self.columns:
                if not _equal(separate.column(column), expected.column(column)):
                    raise self._spec_error(
                        f"feature {column!r} of a row depends on the other rows",
                        "use no window or aggregate over rows: the features of a row must not depend on the other rows",
                    )

    def _check(self) -> list[str]:
        """The feature columns that the SQL returns.

        Raises:
            SpecError: they do not meet the requirements of the spec and of this engine.
        """
        types = describe_columns(self._con, self.spec, self._sql)
        key, categorical = self.spec.data.key, self.spec.features.categorical
        if missing := [k for k in key if k not in types]:
            raise self._spec_error(
                f"it does not return the key column {missing[0]!r}",
                "SELECT the key in addition to the features",
            )
        columns = [c for c in types if c not in key]
        if not columns:
            raise self._spec_error(
                "it returns no feature", "SELECT at least one column in addition to the key"
            )
        if reserved := sorted({"prediction", delta_tables.PARTITION} & set(columns)):
            raise self._spec_error(
                f"a feature is called {reserved[0]!r}, which is a reserved name", "give it another name"
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
                    "list it in features.categorical, or convert it to a number",
                )
        return columns

    def _relation(self, text: str) -> duckdb.DuckDBPyRelation:
        """The features of the rows that the query ``text`` reads.

        Cached, because creating a relation costs as much as the features of thousands of rows. Whenever it is read,
        DuckDB evaluates the variables, the files and their types again.
        """
        if text not in self._relations:
            columns = ", ".join(map(quote_identifier, input_columns(self.spec)))
            # A common table expression instead of a view, which is planned both when it is created and when it is read.
            self._relations[text] = self._con.sql(
                f"WITH published AS NOT MATERIALIZED (SELECT {columns} FROM "
                f"(({text}) UNION ALL BY NAME ({empty_rows_sql(self.spec)}))) SELECT * FROM ({self._sql})"
            )
        return self._relations[text]

    def _ordered(self, relation: Callable[[], duckdb.DuckDBPyRelation], keys: pa.Table) -> Iterator[pa.Table]:
        """Read key and features of rows in the order of their keys.

        Args:
            relation: returns the relation to read; called within the error handling.
            keys: the keys of the rows.
        """
        try:
            reader = relation().to_arrow_reader(STREAM_ROWS)
            names, schema = list(keys.column_names), reader.schema
            expected = pa.table([keys.column(k).cast(schema.field(k).type) for k in names], names=names)
            count = 0
            for batch in reader:
                part = pa.Table.from_batches([batch])
                if not part.select(names).equals(expected.slice(count, len(part))):
                    # Either the order differs or the rows do: that needs all remaining rows.
                    remaining = pa.concat_tables([part, pa.Table.from_batches(list(reader), schema)])
                    self._check_count(len(keys), count + len(remaining))
                    yield self._sort(remaining, expected.slice(count))
                    return
                count += len(part)
                yield part
            self._check_count(len(keys), count)
            if not count:
                yield schema.empty_table()
        except (duckdb.Error, pa.ArrowException, OSError) as error:  # Arrow raises later failures as OSError
            raise DataError(
                f"features.sql failed: {first_line(error, hide=bool(self.spec.data.personal))}",
                "correct the SQL, or add an expectation that quarantines such rows",
                model=self.spec.name,
            ) from error

    def _check_count(self, expected: int, count: int) -> None:
        if expected != count:
            raise self._row_error(f"it returned {count} rows for {expected} rows")

    def _sort(self, rows: pa.Table, keys: pa.Table) -> pa.Table:
        """Sort rows by the order of ``keys``: not every join preserves the order."""

        def joined_key(table: pa.Table) -> pa.ChunkedArray[Any]:
            texts: list[Any] = [table.column(k).cast(pa.string()) for k in self.spec.data.key]
            joined = texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, "\x1f")
            return cast("pa.ChunkedArray[Any]", joined)

        positions: Any = pc.index_in(joined_key(keys), value_set=joined_key(rows))
        if positions.null_count or pc.count_distinct(positions).as_py() != len(keys):
            raise self._row_error("the keys that it returned are not those of the rows")
        return rows.take(positions.combine_chunks() if isinstance(positions, pa.ChunkedArray) else positions)

    def _spec_error(self, cause: str, remedy: str) -> SpecError:
        return SpecError(f"features.sql: {cause}", remedy, model=self.spec.name)

    def _row_error(self, cause: str) -> DataError:
        return DataError(
            f"features.sql: {cause}",
            "join reference tables by a unique key and do not filter: it must return one row for each row",
            model=self.spec.name,
        )


def _connect(
    spec: ModelSpec, reference_versions: dict[str, int], folder: str | None
) -> duckdb.DuckDBPyConnection:
    """Open a connection that can read only the model's reference tables and the files of ``folder``."""
    # One thread: batches are small, and the other cores run XGBoost or count bins.
    con = duckdb_session.connect(threads=1, memory_share=0.25)
    # Batches are consumed one at a time; a buffer of 10 MiB was not faster.
    con.execute("SET streaming_buffer_size='2MiB'")
    # Otherwise a join holds back the last rows of a file until the end, and all later rows have to be held in memory
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
    """Nest the SQL of a model: each part reads the result of the previous part as ``rows``.

    The parts are the feature sets, in order, and then ``features.sql``; the first part reads ``published``.
    """
    text = "SELECT * FROM published"
    for sql in (*(s.sql for s in spec.feature_sets), spec.sql):
        text = f"WITH rows AS NOT MATERIALIZED ({text}) SELECT * FROM (\n{sql.rstrip().rstrip(';')}\n)"
    return text


def input_columns(spec: ModelSpec) -> dict[str, str]:
    """The declared columns that the SQL may read, and their types, without a label column."""
    label = spec.label.expression if spec.label.source is None else None
    return {column: kind for column, kind in spec.data.columns.items() if column != label}


def empty_rows_sql(spec: ModelSpec) -> str:
    """Compose SQL that returns the `input_columns` with their types, and no rows."""
    columns = (
        f"CAST(NULL AS {SQL_TYPES[kind]}) AS {quote_identifier(column)}"
        for column, kind in input_columns(spec).items()
    )
    return f"SELECT {', '.join(columns)} LIMIT 0"


def describe_columns(con: duckdb.DuckDBPyConnection, spec: ModelSpec, text: str) -> dict[str, str]:
    """Determine the names and types of the columns that a model's query returns.

    Args:
        con: a connection with the reference tables.
        spec: the model; the SQL of each of its parts is checked.
        text: its query, as returned by `compose_query`.

    Raises:
        SpecError: the SQL is invalid, or not deterministic.
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
            f"{where}: {used[0]} is not deterministic",
            "use the row's event time, and all rows of a reference table",
            model=spec.name,
        )


def _names(node: object) -> Iterator[str]:
    """Functions and unqualified columns in a parsed query, and `_SAMPLE` if it draws a sample."""
    if isinstance(node, dict):
        name, columns = node.get("function_name"), node.get("column_names")
        if isinstance(name, str):
            # With one argument, age depends on the current date.
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
    """The first line of an error's message; the other lines of DuckDB's messages quote the SQL.

    Args:
        error: the error.
        hide: replace quoted values, which may be personal data.
    """
    line = str(error).strip().split("\n")[0]
    return re.sub(r"'[^']*'?", "'…'", line) if hide else line
