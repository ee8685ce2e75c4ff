"""Which rows a model is trained on: partitions of a pinned version, joined with their labels, as targets and lists.

Rows are read a few partitions at a time, joined with their labels and sorted by key, so that neither memory nor the
result depends on how the lake happens to have laid them out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from perennial.core.sql import quote_identifier
from perennial.features.engine import BATCH_ROWS
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_ROWS = 400_000


def read_labelled_rows(
    spec: ModelSpec, days: tuple[str, ...], version: int | None, labels_version: int | None
) -> Iterator[pa.Table]:
    """Published rows that have a label, with a column ``__label``, by date and key, in tables of a bounded size.

    Args:
        days: dates in order, with no other labelled date between the first and the last.
    """
    uri = delta_tables.table_uri("published", spec.name)
    con = duckdb_session.connect(memory_share=0.3)
    own = spec.label.source is None
    for start, end, _ in groups(uri, days, version, GROUP_ROWS):
        if not duckdb_session.create_view(con, "r", uri, version, start, end):
            continue
        if own:
            text = f"SELECT *, {quote_identifier(spec.label.expression)} AS __label FROM r WHERE __label IS NOT NULL"
        else:
            if not duckdb_session.create_view(
                con, "l", delta_tables.table_uri("labels", spec.name), labels_version, start, end
            ):
                continue
            on = " AND ".join(
                f"r.{quote_identifier(k)} = l.{quote_identifier(k)}"
                for k in (*spec.data.key, delta_tables.PARTITION)
            )
            text = f"SELECT r.*, l.label AS __label FROM r JOIN l ON {on} WHERE l.label IS NOT NULL"
        order = ", ".join(
            quote_identifier(c)
            for c in (delta_tables.PARTITION, *([spec.group] if spec.group else []), *spec.data.key)
        )
        import pyarrow as pa

        for batch in con.sql(f"{text} ORDER BY {order}").to_arrow_reader(BATCH_ROWS):
            if batch.num_rows:
                yield pa.Table.from_batches([batch])


def groups(uri: str, days: tuple[str, ...], version: int | None, most: int) -> Iterator[tuple[str, str, int]]:
    """Runs of partitions that hold about ``most`` rows together, as first date, last date and rows."""
    table = delta_tables.open_table(uri, version)
    if table is None or not days:
        return
    rows: dict[str, int] = {}
    actions = table.get_add_actions(flatten=True)
    for day, count in zip(
        actions[f"partition.{delta_tables.PARTITION}"].to_pylist(),
        actions["num_records"].to_pylist(),
        strict=True,
    ):
        rows[day] = rows.get(day, 0) + int(count or 0)
    start, size = days[0], 0
    for i, day in enumerate(days):
        size += rows.get(day, 0)
        if i + 1 == len(days) or size + rows.get(days[i + 1], 0) > most:
            yield start, day, size
            size = 0
            start = days[i + 1] if i + 1 < len(days) else ""
