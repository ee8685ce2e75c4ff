"""A new model whose rows come from a query: the rows of the query are its sample, and its source is the query."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from perennial.cli.new.partitioning import Partitions
from perennial.cli.new.samples.sample_reader import Sample
from perennial.cli.new.templates import ModelDraft
from perennial.core.errors import DataError, SpecError
from perennial.core.sql import quote_identifier
from perennial.ingestion import query_feed

#: Rows of the query that are looked at.
MAX_ROWS = 1_000_000


@dataclass(frozen=True)
class QueryOfRows:
    """A query of a database.

    Attributes:
        connection: name of the connection.
        sql: the query, without placeholders.
    """

    connection: str
    sql: str

    @classmethod
    def of(cls, connection: str | None, table: str | None, sql: str | None) -> QueryOfRows | None:
        """The query that the options of the command give; None if they give none.

        Args:
            connection: name of the connection.
            table: name of a table; in PostgreSQL also ``schema.table``.
            sql: a query.

        Raises:
            SpecError: the options do not fit each other.
        """
        if connection is None and table is None and sql is None:
            return None
        if connection is None or (table is None) == (sql is None):
            raise SpecError(
                "a model of a database needs --connection, and either --table or --sql",
                "give a connection and one of the two",
            )
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", connection):
            raise SpecError(
                "--connection is no name of a connection: lower case letters, digits, _",
                "give its name; its URI is in the environment variable PERENNIAL_CONNECTION_NAME",
            )
        if table is not None:
            sql = f"SELECT * FROM {'.'.join(map(quote_identifier, table.split('.')))}"
        return cls(connection, (sql or "").strip().rstrip(";").rstrip())

    def copy(self, folder: Path) -> Path:
        """Copy rows of the query to a Parquet file.

        Args:
            folder: where it goes.

        Raises:
            DataError, DatabaseError: see `query_feed.copy_sample`.
        """
        return query_feed.copy_sample(self.connection, self.sql, MAX_ROWS, folder)

    def as_source(self, sample: Sample, draft: ModelDraft, partitions: Partitions) -> ModelDraft:
        """The draft with the query as its source, bounded by the time of the rows.

        Args:
            sample: the rows.
            draft: the draft for files.
            partitions: how the sample is divided.

        Raises:
            DataError: no column is the time of the rows.
        """
        if draft.event_time is None or partitions.by != "time":
            raise DataError(
                "the rows of a query need a time, by which the query is bounded to a partition",
                "name a column of dates or times of at least two days with --event-time, without rows of the future (a "
                "--sql query can leave them out); or export the rows to a file, and give it as --sample",
            )
        time = quote_identifier(draft.event_time)
        columns = ", ".join(quote_identifier(name) for name in sample.columns)
        sql = (
            f"SELECT {columns} FROM (\n{self.sql}\n) AS __feed WHERE {time} >= {{start}} AND {time} < {{end}}"
        )
        # a partition is read after its end
        moment = datetime.now(UTC)
        ended = {d: rows for d, rows in draft.days.items() if partitions.cadence.end_of(d) <= moment}
        source = json.dumps({"connection": self.connection, "sql": sql})
        return replace(draft, source=source, days=ended or draft.days)
