"""The feature engine: one SQL definition for training, scoring and monitoring, in bounded memory.

``features.sql`` reads ``rows`` (the published rows, to which the model's feature sets have added their columns) and
the reference tables, and returns the key and one column per feature. The features of a row depend only on that row and
the reference tables, so that any subset of the rows (a partition, a batch, one request) gets the same features as in
the whole table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perennial.core.errors import DataError, SpecError
from perennial.core.redaction import error_text
from perennial.core.sql import (
    INTERNAL_PREFIX,
    NUMERIC_SQL_TYPES,
    batch_rows,
    quote_identifier,
    same_identifier,
)
from perennial.features import author_sql, feature_tables, lineage, reference_tables
from perennial.features.declared_rows import changed_type, declared_rows_sql, empty_rows_sql, input_columns
from perennial.features.point_in_time import FeatureTableViews, joined_rows_sql
from perennial.features.reference_copies import ReferenceCopies
from perennial.features.scan_units import ParameterisedQuery
from perennial.spec.constraints import feature_name_fault
from perennial.spec.model_spec import FeatureSet, ModelSpec
from perennial.storage import duckdb_session
from perennial.storage.delta_tables import PARTITION

#: Rows that DuckDB returns at a time; few enough that they and their features fit in the processor's caches.
STREAM_ROWS = 8_192


class FeatureQuery:
    """The features of one model at pinned versions of its reference tables.

    Args:
        spec: the spec that the model was trained with.
        reference_versions: version of each reference table by name; when not given, their files are copied to the
            lake and the current versions are used. Rows of a partition join the copy that was there when it was due, up
            to this version. Likewise for feature tables, which have no version here.
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
        self._references: ReferenceCopies | None = None
        if connection is None:
            connection, self._references = _connect(spec, reference_versions, folder)
        self._con = connection
        self._tables = FeatureTableViews(self._con, spec, reference_versions)
        # A given connection sees nothing of the lake: there the feature tables are empty.
        self._reads_lake = self._references is not None
        self._sql = compose_query(spec)
        self._relations: dict[str, duckdb.DuckDBPyRelation] = {}
        self._returned: list[str] = []
        self.columns: list[str] = checked.columns if checked else self._check()
        self.categorical = list(spec.features.categorical)

    def compute(self, rows: pa.Table) -> pa.Table:
        """Compute the features of rows.

        Args:
            rows: published rows; a declared column that is missing is null. With their ``partition_date``, nothing is
                used that was known only after the partition: no such values of feature tables, and no later copies of
                reference tables.

        Returns:
            One row of features per row, in the same order, without the key.

        Raises:
            DataError: the SQL failed, or it lost, duplicated or renamed rows.
        """
        if self._references is None:
            return self._compute(rows)
        parts, positions = [], []
        for partition, group in self._references.split(rows):
            self._references.bind(partition)
            parts.append(self._compute(rows if len(group) == len(rows) else rows.take(group)))
            positions.append(group)
        if len(parts) == 1:
            return parts[0]
        return pa.concat_tables(parts).take(np.concatenate(positions).argsort())

    def _compute(self, rows: pa.Table) -> pa.Table:
        """As `compute`, of rows that join the same copies of the reference tables."""
        declared = {*input_columns(self.spec), *([PARTITION] if self.spec.feature_tables else [])}
        self._con.register("__source_rows", rows.select([c for c in rows.column_names if c in declared]))
        try:
            keys = rows.select(list(self.spec.data.key))
            self._bind_tables("SELECT * FROM __source_rows")
            relation = self._compose_relation("SELECT * FROM __source_rows")
            features = pa.concat_tables(self._ordered(lambda: relation, keys))
        finally:
            self._con.unregister("__source_rows")
        return features.select(self.columns)

    def group_partitions(self, partitions: Iterable[str]) -> list[list[str]]:
        """Divide partitions, in order, into groups whose rows join the same copies of the reference tables."""
        return self._references.group(partitions) if self._references else [list(partitions)]

    def stream(
        self, source: ParameterisedQuery | pa.Table, keys: pa.Table, partition: str | None = None
    ) -> Iterator[pa.Table]:
        """Compute key and features of published rows in batches, and check the keys of each batch.

        Args:
            source: SQL that reads the rows, or the rows; a declared column that is missing is null.
            keys: the keys of the same rows, in the order of the result.
            partition: one of their partitions, which are of one group (`group_partitions`); when not given, the rows
                join the newest copies of the reference tables.

        Raises:
            DataError: raised while iterating: the SQL failed, or it lost, duplicated or renamed rows.
        """
        if self._references:
            self._references.bind(partition)
        if isinstance(source, ParameterisedQuery):
            text = source.text
            for name, value in source.variables.items():
                self._con.execute(f"SET VARIABLE {quote_identifier(name)} = {value}")
        else:
            text = "SELECT * FROM __source_rows"
            self._con.register("__source_rows", source)
        self._bind_tables(text)
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
        self._returned = [*types]
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
        for column in columns:
            if fault := feature_name_fault(column):
                raise self._spec_error(
                    f"a feature is called {column!r}, {fault}", "give it another name with AS"
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
        self._check_personal(types)
        return columns

    def _check_personal(self, types: dict[str, str]) -> None:
        """Refuse features that depend on personal columns, unless the spec says why the model needs them.

        Raises:
            SpecError: there is such a feature; or the spec gives reasons for one that the SQL does not return.
        """
        reasons, key = self.spec.features.personal, self.spec.data.key
        if unknown := [c for c in reasons if c not in types or c in key]:
            raise self._spec_error(
                f"features.personal names {unknown[0]!r}, which it does not return as a feature",
                f"it returns: {', '.join(c for c in types if c not in key)}",
            )
        personal = lineage.personal_features(self._con, self.spec, types, self._sql)
        if refused := [c for c in personal if c not in reasons and c not in key]:
            raise self._spec_error(
                f"feature {refused[0]!r} depends on personal data ({', '.join(personal[refused[0]])})"
                + (f", and so do {', '.join(refused[1:])}" if refused[1:] else ""),
                "leave it out, or say in features.personal why the model needs it",
            )

    def table_sources(self) -> dict[str, list[str]]:
        """The columns of feature tables that each feature depends on, with their prefixes, by feature.

        Raises:
            SpecError: DuckDB could not plan the query in time.
        """
        if not self.spec.feature_tables:
            return {}
        types = describe_columns(self._con, self.spec, self._sql)
        return lineage.table_features(self._con, self.spec, types, self._sql)

    def sources(self) -> dict[str, list[str]] | None:
        """The columns of rows and reference tables that each feature depends on; None if that cannot be traced.

        Raises:
            SpecError: DuckDB could not plan the query in time.
        """
        columns = self._returned or list(describe_columns(self._con, self.spec, self._sql))
        return lineage.feature_sources(self._con, self.spec, columns, self._sql)

    def _relation(self, text: str) -> duckdb.DuckDBPyRelation:
        """The features of the rows that the query ``text`` reads.

        Cached, because creating a relation costs as much as the features of thousands of rows. Whenever it is read,
        DuckDB evaluates the variables, the files and their types again.
        """
        if text not in self._relations:
            self._relations[text] = self._compose_relation(text)
        return self._relations[text]

    def _bind_tables(self, text: str) -> None:
        """Let the feature tables have what the rows of the query ``text`` need."""
        if self.spec.feature_tables and self._reads_lake:
            self._tables.bind(declared_rows_sql(self._con, self.spec, text))

    def _compose_relation(self, text: str) -> duckdb.DuckDBPyRelation:
        # A common table expression instead of a view, which is planned both when it is created and when it is read.
        try:
            with duckdb_session.time_limit(self._con):
                rows = declared_rows_sql(self._con, self.spec, text)
                rows = joined_rows_sql(self._con, self.spec, rows)
                return self._con.sql(
                    f"WITH __published AS NOT MATERIALIZED ({rows}) SELECT * FROM ({self._sql})"
                )
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise self._failure(error, "while it was planned") from error

    def _ordered(self, relation: Callable[[], duckdb.DuckDBPyRelation], keys: pa.Table) -> Iterator[pa.Table]:
        """Read key and features of rows in the order of their keys.

        Args:
            relation: returns the relation to read; called within the error handling.
            keys: the keys of the rows.
        """
        try:
            with duckdb_session.time_limit(self._con):
                reader = relation().to_arrow_reader(batch_rows(STREAM_ROWS, len(self.columns)))
            names, schema = list(keys.column_names), reader.schema
            expected = pa.table([keys.column(k).cast(schema.field(k).type) for k in names], names=names)
            count = 0
            for batch in self._batches(reader):
                part = pa.Table.from_batches([batch])
                if not part.select(names).equals(expected.slice(count, len(part))):
                    # Either the order differs or the rows do: that needs all remaining rows.
                    remaining = pa.concat_tables(
                        [part, pa.Table.from_batches(list(self._batches(reader)), schema)]
                    )
                    self._check_count(len(keys), count + len(remaining))
                    yield self._sort(remaining, expected.slice(count))
                    return
                count += len(part)
                yield part
            self._check_count(len(keys), count)
            if not count:
                yield schema.empty_table()
        except (duckdb.Error, pa.ArrowException, OSError) as error:  # Arrow raises later failures as OSError
            raise self._failure(error, "for its next rows") from error

    def _failure(self, error: Exception, phase: str) -> DataError:
        """The error of SQL that failed, or whose time was over in a phase."""
        if isinstance(error, TimeoutError):
            return DataError(
                f"features.sql: {error} {phase}",
                "simplify the SQL, for example the joins with reference tables",
                model=self.spec.name,
            )
        if message := changed_type(self.spec, error):
            return DataError(
                message,
                "run `perennial check`: it compares the spec with the tables, and names the remedy",
                model=self.spec.name,
            )
        text = error_text(error, hide=self.spec.hides_values, names=self.spec.data.columns)
        return DataError(
            f"features.sql failed: {text}",
            "correct the SQL and train again, or add an expectation that quarantines such rows and publish the "
            "partition again",
            model=self.spec.name,
        )

    def _batches(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        """The batches of a reader, each within the time limit."""
        while True:
            with duckdb_session.time_limit(self._con):
                batch = next(reader, None)
            if batch is None:
                return
            yield batch

    def _check_count(self, expected: int, count: int) -> None:
        if expected != count:
            raise self._row_error(f"it returned {count} rows for {expected} rows")

    def _sort(self, rows: pa.Table, keys: pa.Table) -> pa.Table:
        """Sort rows by the order of ``keys``: not every join preserves the order."""

        def joined_key(table: pa.Table) -> pa.ChunkedArray[Any]:
            texts: list[Any] = [table.column(k).cast(pa.string()) for k in self.spec.data.key]
            # Each text after its length: whatever characters they hold, other keys make another text.
            counted = [part for text in texts for part in (pc.binary_length(text).cast(pa.string()), text)]
            joined = texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*counted, ":")
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
) -> tuple[duckdb.DuckDBPyConnection, ReferenceCopies]:
    """Open a connection that can read only the model's reference tables and the files of ``folder``."""
    # One thread: batches are small, and the other cores run XGBoost or count bins.
    con = duckdb_session.connect(threads=1, memory_share=0.25)
    # Batches are consumed one at a time; a buffer of 10 MiB was not faster.
    con.execute("SET streaming_buffer_size='2MiB'")
    # Otherwise a join holds back the last rows of a file until the end, and all later rows have to be held in memory
    # and sorted (duckdb 22191).
    con.execute("SET enable_caching_operators=false")
    references = ReferenceCopies(con, spec, reference_versions)
    tables = [feature_tables.uri(table) for _, table in spec.feature_tables]
    duckdb_session.lock(con, folders=[*([folder] if folder else []), *references.folders, *tables])
    return con, references


def _equal(left: pa.ChunkedArray[Any], right: pa.ChunkedArray[Any]) -> bool:
    """Whether two columns hold the same values; NaN equals NaN, null equals null."""
    if left.equals(right) or not pa.types.is_floating(left.type):
        return bool(left.equals(right))
    same_nulls = left.is_null().equals(right.is_null())
    return bool(same_nulls and np.array_equal(left.to_numpy(), right.to_numpy(), equal_nan=True))


def compose_query(spec: ModelSpec) -> str:
    """Nest the SQL of a model: each part reads the result of the previous part as ``rows``.

    The parts are the feature sets, in order, and then ``features.sql``; the first part reads ``__published``.
    """
    return _compose((*spec.feature_sets, spec))


def _compose(parts: Iterable[FeatureSet | ModelSpec]) -> str:
    text = "SELECT * FROM __published"
    for sql in (part.sql for part in parts):
        text = f"WITH rows AS NOT MATERIALIZED ({text}) SELECT * FROM (\n{author_sql.statement(sql)}\n)"
    return text


def describe_columns(con: duckdb.DuckDBPyConnection, spec: ModelSpec, text: str) -> dict[str, str]:
    """Determine the names and types of the columns that a model's query returns.

    Args:
        con: a connection with the reference tables.
        spec: the model; the SQL of each of its parts is checked.
        text: its query, as returned by `compose_query`.

    Raises:
        SpecError: the SQL is invalid, cannot be planned in time, or `author_sql` refuses it.
    """
    author_sql.check_model(con, spec)
    con.execute(f"CREATE OR REPLACE TEMP VIEW __published AS {empty_rows_sql(spec)}")
    try:
        with duckdb_session.time_limit(con):
            for i, (where, sql) in enumerate(author_sql.parts(spec)):
                _check_names(con, spec, i, where, sql)
            return {str(r[0]): str(r[1]) for r in con.execute(f"DESCRIBE {text}").fetchall()}
    except TimeoutError as error:
        raise lineage.planning_error(spec, "features.sql", error) from error
    except duckdb.Error as error:
        raise SpecError(
            f"features.sql: {error_text(error, hide=False)}",
            "correct the SQL: it reads rows, with the columns of data.columns, and the reference tables "
            f"({', '.join(r.name for r in spec.references) or 'none'})",
            model=spec.name,
        ) from None
    finally:
        con.execute('DROP VIEW IF EXISTS "rows"; DROP VIEW __published')


def _check_names(con: duckdb.DuckDBPyConnection, spec: ModelSpec, index: int, where: str, sql: str) -> None:
    """Refuse a part of a model's SQL that returns reserved names, or one name twice.

    Within `compose_query`, DuckDB would rename the second of two columns that have the same name.
    """
    con.execute(f'CREATE OR REPLACE TEMP VIEW "rows" AS {_compose(spec.feature_sets[:index])}')
    names = [str(r[0]) for r in con.execute(f"DESCRIBE {author_sql.statement(sql)}").fetchall()]
    if reserved := [n for n in names if n.startswith(INTERNAL_PREFIX)]:
        raise SpecError(
            f"{where}: a column is called {reserved[0]!r}: names that begin with {INTERNAL_PREFIX} are reserved",
            "give it another name with AS",
            model=spec.name,
        )
    if same := same_identifier(names):
        raise SpecError(
            f"{where}: two columns are called {same[0]!r} and {same[1]!r}, and SQL ignores case"
            if same[0] != same[1]
            else f"{where}: two columns are called {same[0]!r}",
            "give one of them another name with AS, or leave it out (SELECT * EXCLUDE)",
            model=spec.name,
        )
