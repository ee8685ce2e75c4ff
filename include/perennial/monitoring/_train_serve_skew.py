"""Train/serve skew: what the model was given when it served, against what the training code gives for the same rows.

The features of the rows that were logged at scoring are computed again by the training code, from the published rows
and the versions of the reference tables that scoring read, and compared column by column: no value may differ. So a
reference table that was revised since, or a night that was published anew, is no skew: the one is read as it was, the
other waits for its scoring.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perennial.core.errors import DataError, StorageError
from perennial.core.sql import quote_identifier, text_literal
from perennial.features import serving_log
from perennial.features.engine import FeatureQuery
from perennial.modeling import registry
from perennial.monitoring.signals import Signal
from perennial.storage import delta_tables, duckdb_session, manifests

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import pyarrow as pa

    from perennial.modeling.trained_model import TrainedModel
    from perennial.spec.model_spec import ModelSpec

#: Predictions of the same features may differ by this share of their size: another processor may add in another order.
RELATIVE_TOLERANCE = 1e-5
PREDICTION_NAME = "the prediction"


@dataclass(frozen=True)
class ComparedPartition:
    """One night that was compared: how many rows differ, by column, where any do."""

    day: str
    rows: int
    differ: Mapping[str, int]


def skew_signal(
    spec: ModelSpec, champion: registry.ModelVersion, model: TrainedModel, start: str, as_of: str
) -> Signal:
    """Whether the champion was given on the nights ``start`` to ``as_of`` what the training code gives.

    Nights that another version scored, or whose rows were published anew since, are passed over.
    """
    found = list(_compare_partitions(spec, champion, model, start, as_of))
    rows = sum(night.rows for night in found)
    if not rows:
        return Signal("undetermined", "no night of this version, as it is published now, has logged features")
    differ: dict[str, int] = {}
    for night in found:
        for column, count in night.differ.items():
            differ[column] = differ.get(column, 0) + count
    if not differ:
        said = f"the features of all {rows:,} logged rows are what the training code gives for them"
        return Signal("ok", said, 0.0, 0.0)
    worst = max(differ, key=lambda c: differ[c])
    first = next(night.day for night in found if night.differ)
    others = f", and {len(differ) - 1} more" * (len(differ) > 1)
    said = (
        f"{worst}{others}: {differ[worst]:,} of {rows:,} logged rows differ from what the training code gives"
    )
    return Signal("bad", f"{said}, first on {first}", float(differ[worst]), 0.0, first)


def _compare_partitions(
    spec: ModelSpec, champion: registry.ModelVersion, model: TrainedModel, start: str, as_of: str
) -> Iterator[ComparedPartition]:
    """Each night that can be compared, in order."""
    published = delta_tables.table_uri("published", spec.name)
    names = {
        d: delta_tables.files_digest(held)
        for d, held in delta_tables.files_by_partition(published).items()
        if start <= d <= as_of
    }
    logged = set(delta_tables.partitions(serving_log.uri(spec.name)))
    trained = registry.load_spec(champion)
    made: dict[str, FeatureQuery] = {}
    con = duckdb_session.connect()
    for day in sorted(names.keys() & logged):
        scored = manifests.read(spec.name, "score", day)
        if (
            scored is None
            or (scored.inputs["champion"], scored.inputs["version"]) != (champion.digest, champion.version)
            or scored.inputs["rows"] != names[day]
        ):
            continue
        log = _logged_rows(con, spec, champion.version, day, serving_log.inputs_digest(scored.inputs))
        if not len(log):
            continue
        versions = scored.inputs["references"]
        try:
            features = made.get(str(versions)) or FeatureQuery(trained, versions)
            made[str(versions)] = features
            again = model.encoding.encode(features.compute(_published_rows(con, spec, day, log)))
        except StorageError:
            continue  # a version of a reference table that is no longer kept
        except DataError as error:
            raise DataError(error.cause, error.remedy, model=spec.name, partition=day) from error
        yield ComparedPartition(day, len(log), _count_differences(model, log, again))


def _logged_rows(
    con: duckdb.DuckDBPyConnection, spec: ModelSpec, version: str, day: str, origin: str
) -> pa.Table:
    """The rows logged by the very scoring that the manifest tells of, ordered by key."""
    duckdb_session.create_view(con, "log", serving_log.uri(spec.name), None, day, day)
    return con.sql(
        f"SELECT * FROM log WHERE scored_from = {text_literal(origin)} AND model_version = {text_literal(version)} "
        f"ORDER BY {_key(spec)}"
    ).to_arrow_table()


def _published_rows(con: duckdb.DuckDBPyConnection, spec: ModelSpec, day: str, log: pa.Table) -> pa.Table:
    """The published rows that were logged, ordered by key."""
    duckdb_session.create_view(con, "r", delta_tables.table_uri("published", spec.name), None, day, day)
    con.register("logged", log.select(list(spec.data.key)))
    return con.sql(
        f"SELECT * FROM r SEMI JOIN logged USING ({_key(spec)}) ORDER BY {_key(spec)}"
    ).to_arrow_table()


def _key(spec: ModelSpec) -> str:
    return ", ".join(map(quote_identifier, spec.data.key))


def _count_differences(model: TrainedModel, log: pa.Table, again: np.ndarray) -> dict[str, int]:
    """Rows that differ, by column; ``again`` are the features that the training code gives, shape (rows, columns)."""
    import numpy as np

    columns = model.encoding.columns
    flat = log.column("features").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if again.shape != (len(log), len(columns)) or flat.size != again.size:
        return {"the number of features": len(log)}
    given = flat.reshape(again.shape)
    unlike = (given != again) & ~(np.isnan(given) & np.isnan(again))
    found = {column: int(n) for column, n in zip(columns, unlike.sum(axis=0), strict=True) if n}
    wrong = _count_changed_predictions(model, log.column("prediction").to_pylist(), given)
    return found | ({PREDICTION_NAME: wrong} if wrong else {})


def _count_changed_predictions(model: TrainedModel, said: list[Any], given: np.ndarray) -> int:
    """Rows of which the model says something else today than it said of the same features then."""
    import numpy as np

    again = model.predict_matrix(np.ascontiguousarray(given))
    if model.classes:
        return sum(model.classes[c] != was for c, was in zip(again.argmax(axis=1), said, strict=True))
    return int((~np.isclose(np.asarray(said, np.float64), again, rtol=RELATIVE_TOLERANCE, atol=1e-6)).sum())
