"""Train/serve skew: the features logged by scoring, compared with those of the training code.

The features of the rows that were logged at scoring are computed again by the training code, from the published rows
and the versions of the reference tables that scoring read, and compared column by column: no value may differ. A
reference table that has changed since is no skew, because its old version is read. A partition that was published again
is skipped until it is scored again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa

from perennial.core.errors import ArtifactError, DataError, StorageError
from perennial.core.sql import quote_identifier, text_literal
from perennial.features import serving_log
from perennial.features.engine import FeatureQuery
from perennial.features.labelled_rows import create_row_view, read_sorted
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
#: What is compared beside the features, by names that no feature has, with the words for it.
_PREDICTION, _FEATURE_COUNT = "__prediction", "__feature_count"
_WORDS = {_PREDICTION: "the prediction", _FEATURE_COUNT: "the number of features"}
#: Latest logged partitions in which a version's own rows are looked for, and most rows of them that it predicts again.
SEARCHED_PARTITIONS, REPEATED_ROWS = 90, 1000


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
    published = delta_tables.partitions(delta_tables.table_uri("published", spec.name))
    partitions = sum(start <= day <= as_of for day in published)
    signal = partial(Signal, evaluated=len(compared), partitions=partitions)
    if not rows:
        return signal("undetermined", "no partition that this version scored has logged features")
    differing: dict[str, int] = {}
    for partition in compared:
        for column, count in partition.differing.items():
            differing[column] = differing.get(column, 0) + count
    if not differing:
        reason = (
            f"all {rows:,} logged rows have the features of the training code, "
            f"in {len(compared)} of {partitions} partitions"
        )
        return signal("ok", reason, 0.0, 0.0)
    worst = max(differing, key=lambda c: differing[c])
    first = next(partition.day for partition in compared if partition.differing)
    others = f", and {len(differing) - 1} more" * (len(differing) > 1)
    reason = (
        f"{_WORDS.get(worst, worst)}{others}: {differing[worst]:,} of {rows:,} logged rows differ from the training "
        f"code, first on {first}"
    )
    return signal("bad", reason, float(differing[worst]), 0.0, first)


def check_predictions(spec: ModelSpec, version: registry.ModelVersion, model: TrainedModel) -> int:
    """Let a version predict again the latest logged rows that it scored, from the same features.

    Args:
        spec: the model.
        version: the version.
        model: its model.

    Returns:
        The number of rows; 0 if the log has none of this version.

    Raises:
        ArtifactError: it predicts other values now.
    """
    days = delta_tables.partitions(serving_log.uri(spec.name))[-SEARCHED_PARTITIONS:]
    scorings = [
        serving_log.inputs_digest(scored.inputs)
        for scored in manifests.read_all(spec.name, "score", days).values()
        # a number is used again if somebody deletes the model in MLflow
        if (scored.inputs["champion"], scored.inputs["version"]) == (version.digest, version.version)
    ]
    con = duckdb_session.connect(threads=1)
    if not scorings or not duckdb_session.create_view(
        con, "__log", serving_log.uri(spec.name), None, days[0]
    ):
        return 0
    log: pa.Table = con.sql(
        f"SELECT * FROM __log WHERE {spec.lake_column('scored_from')} IN ({', '.join(map(text_literal, scorings))}) "
        f"AND {spec.lake_column('model_version')} = {text_literal(version.version)} "
        f"ORDER BY {delta_tables.PARTITION} DESC, {_key(spec)} LIMIT {REPEATED_ROWS}"
    ).to_arrow_table()
    width = len(model.encoding.columns)
    features: Any = log.column(spec.lake_column("features")).combine_chunks()
    flat = features.flatten().to_numpy(zero_copy_only=False)
    changed = len(log)
    if flat.size == len(log) * width:
        predictions = log.column(spec.lake_column("prediction")).to_pylist()
        changed = (
            count_changed_predictions(model, predictions, flat.reshape(len(log), width)) if len(log) else 0
        )
    if changed:
        raise ArtifactError(
            f"version {version.version} predicts other values now for {changed:,} of {len(log):,} logged rows that it "
            "scored",
            "its file or the libraries are not those of then: choose another version, or train again",
            model=spec.name,
        )
    return len(log)


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
        try:
            query = serving_log.features_as_scored(trained, scored, champion.version, queries)
            if query is None:
                continue  # scored with another copy of a reference table, before the spec changed
            recomputed = model.encoding.encode(query.compute(_published_rows(con, spec, day, log)))
        except StorageError:
            continue  # an old version of a reference table is no longer stored
        except DataError as error:
            raise DataError(error.cause, error.remedy, model=spec.name, partition=day) from error
        yield ComparedPartition(day, len(log), _count_differences(spec, model, log, recomputed))


def _logged_rows(
    con: duckdb.DuckDBPyConnection, spec: ModelSpec, version: str, day: str, inputs_digest: str
) -> pa.Table:
    """The rows logged by the scoring that the manifest describes, ordered by key."""
    duckdb_session.create_view(con, "__log", serving_log.uri(spec.name), None, day, day)
    rows: pa.Table = con.sql(
        f"SELECT * FROM __log WHERE {spec.lake_column('scored_from')} = {text_literal(inputs_digest)} "
        f"AND {spec.lake_column('model_version')} = {text_literal(version)} ORDER BY {_key(spec)}"
    ).to_arrow_table()
    return rows


def _published_rows(con: duckdb.DuckDBPyConnection, spec: ModelSpec, day: str, log: pa.Table) -> pa.Table:
    """The published rows that were logged, ordered by key."""
    create_row_view(con, "__rows", spec, None, day, day)
    con.register("__logged", log.select(list(spec.data.key)))
    return read_sorted(con, f"SELECT * FROM __rows SEMI JOIN __logged USING ({_key(spec)})", _key(spec))


def _key(spec: ModelSpec) -> str:
    return ", ".join(map(quote_identifier, spec.data.key))


def _count_differences(
    spec: ModelSpec, model: TrainedModel, log: pa.Table, recomputed: np.ndarray
) -> dict[str, int]:
    """Rows that differ, by column.

    Args:
        spec: the model.
        model: the champion.
        log: logged rows.
        recomputed: their features by the training code, encoded, shape (rows, columns).
    """
    columns = model.encoding.columns
    lists: Any = log.column(spec.lake_column("features")).combine_chunks()
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    if recomputed.shape != (len(log), len(columns)) or flat.size != recomputed.size:
        return {_FEATURE_COUNT: len(log)}
    served = flat.reshape(recomputed.shape)
    unequal = (served != recomputed) & ~(np.isnan(served) & np.isnan(recomputed))
    differing = {column: int(n) for column, n in zip(columns, unequal.sum(axis=0), strict=True) if n}
    predictions = log.column(spec.lake_column("prediction")).to_pylist()
    changed = count_changed_predictions(model, predictions, served)
    return differing | ({_PREDICTION: changed} if changed else {})


def count_changed_predictions(model: TrainedModel, predictions: list[Any], served: np.ndarray) -> int:
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
