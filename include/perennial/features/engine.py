"""Features: one SQL definition, run by one engine in training and in scoring, a bounded number of rows at a time.

``features.sql`` reads ``rows`` (the published rows, to which the model's feature sets have added their columns) and
the reference tables, and returns the key and one column a feature. Each row's features depend on that row and the
reference tables alone, so that any slice of a table, a night or one request gives what the whole table would give.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from perennial.core.errors import DataError, SpecError
from perennial.core.sql import quote_identifier, text_literal
from perennial.features import reference_tables
from perennial.features.scan_units import ParameterisedQuery
from perennial.spec.model_spec import FeatureSet, ModelSpec
from perennial.storage import delta_tables, duckdb_session

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

BATCH_ROWS = 131_072
#: Rows that a statement hands over at a time: few enough for what is made of them to stay in the processor's caches.
STREAM_ROWS = 8_192
_SQL_TYPES = {
    "string": "VARCHAR",
    "integer": "BIGINT",
    "number": "DOUBLE",
    "boolean": "BOOLEAN",
    "date": "DATE",
    "timestamp": "TIMESTAMP",
}
#: Words without parentheses, and macros, that give another result each time: DuckDB's own list of volatile functions
#: does not hold them.
_CLOCKS = {
    "current_date", "current_time", "current_timestamp", "localtime", "localtimestamp", "current_localtime",
    "current_localtimestamp", "current_user", "session_user", "user",
}  # fmt: skip


class FeatureQuery:
    """The features of one model at pinned versions of its reference tables.

    Args:
        spec: the model, as it was when it was trained.
        versions: version of each reference table; brought up to date and taken when not given.
        folder: a folder of the lake whose files `of` may read.
        like: one of the same spec at the same versions, whose SQL was checked.

    Attributes:
        columns: names of the features, in order.
        categorical: those that are categories; all others are numbers.

    Raises:
        SpecError: the SQL does not work on the declared columns.
    """

    def __init__(
        self,
        spec: ModelSpec,
        versions: dict[str, int] | None = None,
        folder: str | None = None,
        *,
        like: FeatureQuery | None = None,
    ) -> None:
        self.spec = spec
        self.versions = reference_tables.sync_to_lake(spec) if versions is None else versions
        # One thread: batches are small, and XGBoost, or the counting of drift, keeps the other cores busy.
        self._con = duckdb_session.connect(threads=1, memory_share=0.25)
        # Parts are used one by one: ten MiB of them made ahead would be five times as much as serves.
        self._con.execute("SET streaming_buffer_size='2MiB'")
        # A join would keep the last few rows of a file back until the end, and all after them be held and put in order
        # (duckdb 22191).
        self._con.execute("SET enable_caching_operators=false")
        reference_tables.load_into(self._con, spec, self.versions)
        if folder:
            self._con.execute(f"SET allowed_directories=[{text_literal(folder)}]")
        # From here on the SQL can read what was registered and nothing else: no other file, no address.
        self._con.execute("SET enable_external_access=false; SET lock_configuration=true")
        self._query = compose_query(spec)
        self._planned: dict[str, duckdb.DuckDBPyRelation] = {}
        self.columns: list[str] = like.columns if like else self._check()
        self.categorical = list(spec.features.categorical)

    def _check(self) -> list[str]:
        types = describe(self._con, self.spec, self._query)
        key = self.spec.data.key
        if missing := [k for k in key if k not in types]:
            raise self._wrong(
                f"it does not return the key column {missing[0]!r}", "SELECT the key beside the features"
            )
        columns = [c for c in types if c not in key]
        if not columns:
            raise self._wrong("it returns no feature", "SELECT at least one column beside the key")
        if taken := sorted({"prediction", delta_tables.PARTITION} & set(columns)):
            raise self._wrong(
                f"a feature is called {taken[0]!r}, a name that Perennial uses", "give it another name"
            )
        if unknown := [c for c in self.spec.features.categorical if c not in columns]:
            raise self._wrong(
                f"features.categorical names {unknown[0]!r}, which it does not return",
                f"it returns: {', '.join(columns)}",
            )
        for column in columns:
            text = column in self.spec.features.categorical
            kind = types[column].split("(")[0]
            if not text and kind not in _NUMBERS:
                raise self._wrong(
                    f"feature {column!r} is a {types[column]}",
                    "name it in features.categorical, or turn it into a number",
                )
        return columns

    def _wrong(self, cause: str, remedy: str) -> SpecError:
        return SpecError(f"features.sql: {cause}", remedy, model=self.spec.name)

    def apply(self, rows: pa.Table) -> pa.Table:
        """Features of ``rows`` (published rows, any number of them), one row each, in the same order.

        Raises:
            DataError: the SQL lost, doubled or renamed rows.
        """
        import pyarrow as pa

        hidden = self._hidden()
        self._con.execute("DROP VIEW IF EXISTS published")
        self._con.register("published", rows.select([c for c in self.spec.data.columns if c not in hidden]))
        try:
            found = pa.concat_tables(
                self._found(lambda: self._con.sql(self._query), rows.select(list(self.spec.data.key)))
            )
        finally:
            self._con.unregister("published")
        return found.select(self.columns)

    def of(self, source: ParameterisedQuery | pa.Table, keys: pa.Table) -> Iterator[pa.Table]:
        """Key and features of published rows, part by part, each part checked.

        Args:
            source: SQL that reads the rows, or the rows; a declared column that is not there is null.
            keys: the keys of the same rows, in the order that is wanted.

        Raises:
            DataError: from the iterator: the SQL failed, or it lost, doubled or renamed rows.
        """
        if isinstance(source, ParameterisedQuery):
            text = source.text
            for name, value in source.variables.items():
                self._con.execute(f"SET VARIABLE {quote_identifier(name)} = {value}")
        else:
            text = "SELECT * FROM source_rows"
            self._con.register("source_rows", source)
        return self._found(lambda: self._plan(text), keys)

    def _plan(self, text: str) -> duckdb.DuckDBPyRelation:
        """The features of the rows that ``text`` reads.

        Kept, since making a relation costs as much as features of thousands of rows: whenever it is read, DuckDB looks
        anew at the variables, the files and their types.
        """
        if text not in self._planned:
            shown = {c: t for c, t in self.spec.data.columns.items() if c not in self._hidden()}
            typed = ", ".join(
                f"CAST(NULL AS {_SQL_TYPES[t]}) AS {quote_identifier(c)}" for c, t in shown.items()
            )
            listed = ", ".join(map(quote_identifier, shown))
            # Within the statement: a view is planned when it is made, and once more when it is read.
            self._planned[text] = self._con.sql(
                f"WITH published AS NOT MATERIALIZED (SELECT {listed} FROM "
                f"(({text}) UNION ALL BY NAME (SELECT {typed} LIMIT 0))) SELECT * FROM ({self._query})"
            )
        return self._planned[text]

    def _hidden(self) -> set[str]:
        return {self.spec.label.expression} if self.spec.label.source is None else set()

    def _found(self, plan: Callable[[], duckdb.DuckDBPyRelation], keys: pa.Table) -> Iterator[pa.Table]:
        """Key and features of rows, in the order of ``keys``, which are theirs.

        Args:
            plan: gives the relation that finds them.
        """
        import duckdb
        import pyarrow as pa

        try:
            stream = plan().to_arrow_reader(STREAM_ROWS)
            names, schema = list(keys.column_names), stream.schema
            wanted = pa.table([keys.column(k).cast(schema.field(k).type) for k in names], names=names)
            at = 0
            for batch in stream:
                part = pa.Table.from_batches([batch])
                if not part.select(names).equals(wanted.slice(at, len(part))):
                    # What comes is in another order, or not what was asked for.
                    rest = pa.concat_tables([part, pa.Table.from_batches(list(stream), schema)])
                    self._check_count(len(keys), at + len(rest))
                    yield self._in_order(rest, wanted.slice(at))
                    return
                at += len(part)
                yield part
            self._check_count(len(keys), at)
            if not at:
                yield schema.empty_table()
        except (duckdb.Error, pa.ArrowException, OSError) as error:  # what fails later comes as an OSError
            raise DataError(
                f"features.sql failed: {first_line(error, hide=bool(self.spec.data.personal))}",
                "mend the SQL, or add an expectation that keeps such rows out",
                model=self.spec.name,
            ) from error

    def _check_count(self, wanted: int, found: int) -> None:
        if wanted != found:
            raise self._rows(f"{wanted} rows went in, {found} came out")

    def _in_order(self, found: pa.Table, wanted: pa.Table) -> pa.Table:
        """``found`` in the order of the keys ``wanted``: not every join keeps the order."""
        import pyarrow as pa
        import pyarrow.compute as pc

        def joined(table: pa.Table) -> pa.ChunkedArray:
            texts = [table.column(k).cast(pa.string()) for k in self.spec.data.key]
            return texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, "\x1f")

        theirs, mine = joined(found), joined(wanted)
        positions = pc.index_in(mine, value_set=theirs)
        if positions.null_count or pc.count_distinct(positions).as_py() != len(mine):
            raise self._rows("the keys that came out are not those that went in")
        return found.take(positions.combine_chunks() if isinstance(positions, pa.ChunkedArray) else positions)

    def _rows(self, cause: str) -> DataError:
        return DataError(
            f"features.sql: {cause}",
            "join reference tables by a unique key, do not filter: each row has its features once",
            model=self.spec.name,
        )

    def check_rowwise(self, rows: pa.Table) -> None:
        """Refuse SQL whose result for a row depends on the other rows.

        Raises:
            SpecError: one half of ``rows`` alone gives other features than within the whole.
        """
        import numpy as np

        def values(table: pa.Table, column: str) -> np.ndarray:
            found = np.asarray(table.column(column).to_numpy())
            return found if column in self.categorical else np.nan_to_num(found)

        whole, middle = self.apply(rows), max(1, rows.num_rows // 2)
        for start, length in ((0, middle), (middle, rows.num_rows - middle)):
            alone, part = self.apply(rows.slice(start, length)), whole.slice(start, length)
            for column in self.columns:
                if not np.array_equal(values(part, column), values(alone, column)):
                    raise self._wrong(
                        f"feature {column!r} of a row depends on the other rows",
                        "use no window or aggregate over rows: a night must give what a year gives",
                    )


_NUMBERS = {
    "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT",
    "FLOAT", "DOUBLE", "DECIMAL",
}  # fmt: skip


def compose_query(spec: ModelSpec) -> str:
    """The SQL of a model: each feature set, then ``features.sql``, reading the one before it as ``rows``."""
    text = "SELECT * FROM published"
    for sql in (*(s.sql for s in spec.feature_sets), spec.sql):
        text = f"WITH rows AS NOT MATERIALIZED ({text}) SELECT * FROM (\n{sql.rstrip().rstrip(';')}\n)"
    return text


def describe(con: object, spec: ModelSpec, text: str) -> dict[str, str]:
    """Column names and types that the SQL gives for rows of the declared types.

    Raises:
        SpecError: the SQL is wrong, or gives another result each time it runs.
    """
    import duckdb

    assert isinstance(con, duckdb.DuckDBPyConnection)
    hidden = spec.label.expression if spec.label.source is None else None
    columns = ", ".join(
        f"CAST(NULL AS {_SQL_TYPES[t]}) AS {quote_identifier(c)}"
        for c, t in spec.data.columns.items()
        if c != hidden
    )
    con.execute(f"CREATE OR REPLACE TEMP VIEW published AS SELECT {columns} LIMIT 0")
    try:
        for source in [*spec.feature_sets, spec]:
            assert isinstance(source, FeatureSet | ModelSpec)
            _refuse_unstable(con, spec, f"{source.name}/features.sql", source.sql)
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


def _refuse_unstable(con: object, spec: ModelSpec, where: str, sql: str) -> None:
    import json

    import duckdb

    assert isinstance(con, duckdb.DuckDBPyConnection)
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
    volatile = con.execute(
        "SELECT DISTINCT lower(function_name) FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
    ).fetchall()
    unstable = ({str(v[0]) for v in volatile} | _CLOCKS | {"a sample"}) - {"error", *spec.data.columns}
    if found := sorted(set(_names(tree)) & unstable):
        raise SpecError(
            f"{where}: {found[0]} gives another result each time",
            "use the row's event time, and all rows of a reference table",
            model=spec.name,
        )


def _names(node: object) -> Iterator[str]:
    """Functions and bare words that a parsed query uses, and ``a sample`` where it draws one."""
    if isinstance(node, dict):
        name, columns = node.get("function_name"), node.get("column_names")
        if isinstance(name, str):
            # With one argument, age counts up to today.
            yield "today" if name.lower() == "age" and len(node.get("arguments", ())) == 1 else name.lower()
        if isinstance(columns, list) and len(columns) == 1:
            yield str(columns[0]).lower()
        if isinstance(node.get("sample"), dict):
            yield "a sample"
        for value in node.values():
            yield from _names(value)
    elif isinstance(node, list):
        for value in node:
            yield from _names(value)


def first_line(error: Exception, *, hide: bool = False) -> str:
    """The first line of an error's message: DuckDB's go on with the SQL.

    Args:
        hide: leave out the values it quotes, which may be personal data.
    """
    line = str(error).strip().split("\n")[0]
    return re.sub(r"'[^']*'?", "'…'", line) if hide else line


def reader(
    spec: ModelSpec,
    start: str | None,
    end: str | None,
    version: int | None = None,
    versions: dict[str, int] | None = None,
) -> pa.RecordBatchReader | None:
    """Key, ``partition_date`` and features of the published rows of a range, as a stream; None where there are none."""
    import pyarrow as pa

    source = duckdb_session.stream(
        delta_tables.table_uri("published", spec.name), version, start, end, rows=BATCH_ROWS
    )
    if source is None:
        return None
    features = FeatureQuery(spec, versions)
    keep = [*spec.data.key, delta_tables.PARTITION]

    def parts() -> Iterator[pa.RecordBatch]:
        for batch in source:
            rows = pa.Table.from_batches([batch])
            found = features.apply(rows)
            yield from (
                pa.table({c: rows.column(c) for c in keep} | {c: found.column(c) for c in found.column_names})
                .combine_chunks()
                .to_batches()
            )

    stream = parts()
    first = next(stream, None)
    if first is None:
        return None
    return pa.RecordBatchReader.from_batches(first.schema, _chain(first, stream))


def _chain(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest
