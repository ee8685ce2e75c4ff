"""Where the partitions of a feed come from: files, by a path template, or a query of a database."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, StringConstraints, field_validator, model_validator

from perennial.core.query_text import check_query
from perennial.spec.constraints import check_template
from perennial.spec.strict_model import StrictModel

__all__ = ["ConnectionName", "FeedSource", "PredictionsSpec", "QuerySource"]

ConnectionName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]


class QuerySource(StrictModel):
    """A feed that is a query of a database, instead of files."""

    sql: str = Field(
        min_length=1,
        max_length=20_000,
        description="One SELECT in the database's own SQL, with the parameters {start} and {end}: the moments in UTC "
        "between which the rows of a partition lie, the second not included.",
    )
    connection: ConnectionName = Field(
        description="Name of the connection: PERENNIAL_CONNECTION_NAME in the environment, or an Airflow connection."
    )

    ready: str | None = Field(
        None,
        min_length=1,
        max_length=20_000,
        description="One SELECT with {start} or {end} whose first cell is true, or a number other than 0, once all "
        "rows of a partition are there. A partition is not read before.",
    )

    @field_validator("sql")
    @classmethod
    def _sql(cls, value: str) -> str:
        return check_query(value)

    @field_validator("ready")
    @classmethod
    def _ready(cls, value: str | None) -> str | None:
        return None if value is None else check_query(value, of_rows=False)

    def __str__(self) -> str:
        return f"query of connection {self.connection}"


class PredictionsSpec(StrictModel):
    """A table that predictions are written to, besides the lake."""

    connection: ConnectionName | None = Field(
        None, description="Name of the connection to the database, as for data.source; needs table."
    )
    table: str | None = Field(
        None,
        max_length=128,
        pattern=r"^[^\x00-\x1f\x7f.]+(\.[^\x00-\x1f\x7f.]+)?$",
        description="Name of the table, in PostgreSQL also schema.table. It is created if it is missing; each "
        "partition is replaced in one transaction.",
    )

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.connection is None) != (self.table is None):
            raise ValueError("connection and table belong together: give both, or neither")
        return self


def _path_or_query(value: Any) -> Any:
    """Read a source, so that an error is about a path template or about a query, not about either."""
    if value is None or isinstance(value, QuerySource):
        return value
    if isinstance(value, str):
        return check_template(value.strip(), dated=True)
    if isinstance(value, dict):
        return QuerySource.model_validate(value)
    raise ValueError("must be a path template, or a section with the keys sql and connection")


#: The path template of files, or a query.
FeedSource = Annotated[str | QuerySource, BeforeValidator(_path_or_query)]
