"""Train/serve skew: the features logged by scoring, compared with those of the training code.

The features of the rows that were logged at scoring are computed again by the training code, from the published rows
and the versions of the reference tables that scoring read, and compared column by column: no value may differ. A
reference table that has changed since is no skew, because its old version is read. A partition that was published again
is skipped until it is scored again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa

from perennial.core.errors import DataError, StorageError
from perennial.core.sql import quote_identifier, text_literal
from perennial.features import serving_log
from perennial.features.engine import FeatureQuery
from perennial.modeling import registry
from perennial.monitoring.signals import Signal
from perennial.storage import delta_tables, duckdb_session, manifests

if TYPE_CHECKING:
    from perennial.modeling.trained_model import TrainedModel
    from perennial.spec.model_spec import ModelSpec

#: Relative and absolute difference of predictions from the same features that is tolerated: another processor may add
#: in another order.
RELATIVE_TOLERANCE = 1e-5
ABSOLUTE_TOLERANCE = 1e-6
PREDICTION_NAME = "the prediction"


@dataclass(frozen=True)
class ComparedPartition:
    """A partition that was compared.

    Attributes:
        day: its date.
        rows: logged rows that were compared.
        differing: number of rows that differ, by column; without columns that have none.
    """

    day: str
    rows: int
    differing: Mapping[str, int]


def skew_signal(
    spec: ModelSpec, champion: registry.ModelVersion, model: TrainedModel, start: str, as_of: str
) -> Signal:
    """Compare the champion's logged features with those that the training code computes.

    Partitions that another version scored, or whose rows were published again since, are skipped.

    Args:
        spec: the model.
        champion: version of the champion.
        model: the champion.
        start: first partition date.
        as_of: last partition date.
    """
    compared = list(_compare_partitions(spec, champion, model, start, as_of))
    rows = sum(partition.rows for partition in compared)
    if not rows:
        return Signal("undetermined", "no partition that this version scored has logged features")
    differing: dict[str, int] = {}
    for partition in compared:
        for column, count in partition.differing.items():
            differing[column] = differing.get(column, 0) + count
    if not differing:
        return Signal("ok", f"all {rows:,} logged rows have the features of the training code", 0.0, 0.0)
    worst = max(differing, key=lambda c: differing[c])
    first = next(partition.day for partition in compared if partition.differing)
    others = f", and {len(differing) - 1} more" * (len(differing) > 1)
    reason = (
        f"{worst}{others}: {differing[worst]:,} of {rows:,} logged rows differ from the training code, "
        f"first on {first}"
    )
    return Signal("bad", reason, float(differing[worst]), 0.0, first)


def _compare_partitions(
    spec: ModelSpec, champion: registry.ModelVersion, model: TrainedModel, start: str, as_of: str
) -> Iterator[ComparedPartition]:
    """Compare each partition that can be compared, in order."""
    published = delta_tables.files_by_partition(delta_tables.table_uri("published", spec.name))
    digests = {d: delta_tables.files_digest(files) for d, files in published.items() if start <= d <= as_of}
    logged = set(delta_tables.partitions(serving_log.uri(spec.name)))
    trained = registry.load_spec(champion)
    queries: dict[str, FeatureQuery] = {}
    con = duckdb_session.connect()
    for day in sorted(digests.keys() & logged):
        scored = manifests.read(spec.name, "score", day)
        if (
            scored is None
            or (scored.inputs["champion"], scored.inputs["version"]) != (champion.digest, champion.version)
            or scored.inputs["rows"] != digests[day]
        ):
            continue
        log = _logged_rows(con, spec, champion.version, day, serving_log.inputs_digest(scored.inputs))
        if not len(log):
            continue
        versions = scored.inputs["references"]
        try:
            query = queries.get(str(versions)) or FeatureQuery(trained, versions)
            queries[str(versions)] = query
            recomputed = model.encoding.encode(query.compute(_published_rows(con, spec, day, log)))
        except StorageError:
            continue  # an old version of a reference table is no longer stored
        except DataError as error:
            raise DataError(error.cause, error.remedy, model=spec.name, partition=day) from error
        yield ComparedPartition(day, len(log), _count_differences(model, log, recomputed))


def _logged_rows(
    con: duckdb.DuckDBPyConnection, spec: ModelSpec, version: str, day: str, inputs_digest: str
) -> pa.Table:
    """The rows logged by the scoring that the manifest describes, ordered by key."""
    duckdb_session.create_view(con, "log", serving_log.uri(spec.name), None, day, day)
    rows: pa.Table = con.sql(
        f"SELECT * FROM log WHERE scored_from = {text_literal(inputs_digest)} "
        f"AND model_version = {text_literal(version)} ORDER BY {_key(spec)}"
    ).to_arrow_table()
    return rows


def _published_rows(con: duckdb.DuckDBPyConnection, spec: ModelSpec, day: str, log: pa.Table) -> pa.Table:
    """The published rows that were logged, ordered by key."""
    duckdb_session.create_view(con, "r", delta_tables.table_uri("published", spec.name), None, day, day)
    con.register("logged", log.select(list(spec.data.key)))
    rows: pa.Table = con.sql(
        f"SELECT * FROM r SEMI JOIN logged USING ({_key(spec)}) ORDER BY {_key(spec)}"
    ).to_arrow_table()
    return rows


def _key(spec: ModelSpec) -> str:
    return ", ".join(map(quote_identifier, spec.data.key))


def _count_differences(model: TrainedModel, log: pa.Table, recomputed: np.ndarray) -> dict[str, int]:
    """Rows that differ, by column.

    Args:
        model: the champion.
        log: logged rows.
        recomputed: their features by the training code, encoded, shape (rows, columns).
    """
    columns = model.encoding.columns
    lists: Any = log.column("features").combine_chunks()
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    if recomputed.shape != (len(log), len(columns)) or flat.size != recomputed.size:
        return {"the number of features": len(log)}
    served = flat.reshape(recomputed.shape)
    unequal = (served != recomputed) & ~(np.isnan(served) & np.isnan(recomputed))
    differing = {column: int(n) for column, n in zip(columns, unequal.sum(axis=0), strict=True) if n}
    changed = _count_changed_predictions(model, log.column("prediction").to_pylist(), served)
    return differing | ({PREDICTION_NAME: changed} if changed else {})


def _count_changed_predictions(model: TrainedModel, predictions: list[Any], served: np.ndarray) -> int:
    """Number of rows for which the model now predicts another value from the same features.

    Args:
        model: the champion.
        predictions: logged predictions.
        served: logged features, shape (rows, columns).
    """
    repeated = model.predict_matrix(np.ascontiguousarray(served))
    if model.classes:
        classes = zip(repeated.argmax(axis=1), predictions, strict=True)
        return sum(model.classes[c] != logged for c, logged in classes)
    logged = np.asarray(predictions, np.float64)
    return int((~np.isclose(logged, repeated, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE)).sum())
