"""Which columns of which tables the features of a model, its label and the columns of a feature table come from."""

from __future__ import annotations

from typing import NamedTuple

from perennial.core.sql import SQL_TYPES
from perennial.features import author_sql, history, lineage, reference_tables
from perennial.features.engine import FeatureQuery
from perennial.spec.feature_table import FeatureTable
from perennial.spec.model_spec import ModelSpec, source_specs
from perennial.storage import delta_tables, duckdb_session


class Origin(NamedTuple):
    """A column that a value depends on.

    Attributes:
        table: name of a reference table, of a feature table, or of a source of a feature table; empty for the rows.
        column: name of the column there.
    """

    table: str
    column: str


#: The columns that each column depends on, by its name.
Origins = dict[str, list[Origin]]


def feature_origins(spec: ModelSpec) -> Origins | None:
    """The columns that each feature depends on; None if that cannot be traced, or a reference table has no copy.

    No row is read: the plan of the SQL is followed over empty tables.

    Raises:
        SpecError: the SQL is refused, or cannot be planned in time.
        StorageError: the lake cannot be read.
    """
    with duckdb_session.connect_small() as con:
        for reference in spec.references:
            copy = delta_tables.open_table(reference_tables.uri(reference))
            if copy is None:
                return None
            rows = delta_tables.arrow_schema(copy).empty_table()
            reference_tables.load_table(con, reference.name, rows)
        duckdb_session.lock(con)
        query = FeatureQuery(spec, {}, connection=con)
        sources = query.sources()
    if sources is None:
        return None
    return {feature: [_origin(spec, name) for name in sources.get(feature, ())] for feature in query.columns}


def _origin(spec: ModelSpec, name: str) -> Origin:
    """The column that `lineage.feature_sources` names: of the rows, of a feature table, or ``table.column``."""
    for join, table in spec.feature_tables:
        for column in table.features:
            if name == join.prefix + column:
                return Origin(table.name, column)
    if name in spec.data.columns:
        return Origin("", name)
    table_name, _, column = name.partition(".")
    return Origin(table_name, column)


def label_origins(spec: ModelSpec) -> list[Origin]:
    """The columns of the label feed, or of the rows, that the label depends on.

    Raises:
        TimeoutError: the expression cannot be planned in time.
    """
    columns = spec.label.columns if spec.label.source else spec.data.columns
    tables = {lineage.ROWS: {c: SQL_TYPES[kind] for c, kind in columns.items()}}
    query = f"SELECT {author_sql.label_sql(spec)} FROM {lineage.ROWS}"
    return [
        Origin("", column) for column in lineage.personal_sources(tables, {lineage.ROWS: columns}, query)[0]
    ]


def table_origins(table: FeatureTable) -> Origins:
    """The columns of its sources that each column of a feature table depends on.

    The label of a source is the column of its table of labels, ``labels_of(source)``. Where the plan
    cannot be followed, a column depends on all of them.

    Raises:
        SpecError: the label of a source is refused.
        TimeoutError: the SQL cannot be planned in time.
    """
    query = author_sql.statement(table.sql)
    with duckdb_session.connect_small() as con:
        tables = history.create_empty_sources(con, table)
        duckdb_session.lock(con)
        with duckdb_session.time_limit(con):
            returned = con.sql(query).columns
    named = {spec.name: spec.name for spec in source_specs(table)} | {
        history.HISTORY: source_specs(table)[0].name
    }
    labels = {s.model: (s.label, spec) for s, spec in zip(table.sources, source_specs(table), strict=True)}

    def origin(text: str) -> Origin:
        view, _, column = text.partition(".")
        label, spec = labels[named[view]]
        if column == label:
            return Origin(labels_of(spec.name), spec.lake_column("label"))
        return Origin(spec.name, column)

    traced = {name: columns for name, columns in tables.items() if name != history.PERIOD}
    sources = lineage.personal_sources(tables, traced, query)
    return {c: sorted({origin(text) for text in of}) for c, of in zip(returned, sources, strict=True)}


def labels_of(source: str) -> str:
    """How `Origin.table` names the labels of a source of a feature table."""
    return f"{source} labels"
