"""One stored prediction, from the published row through its features to the version that made it.

The features are computed again from the table versions that scoring read, so that the explanation is that of the stored
prediction and not of what the same row would get today.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from perennial.core.errors import DataError, PerennialError
from perennial.core.sql import HIDDEN_VALUE, SQL_TYPES, quote_identifier
from perennial.features import serving_log
from perennial.features.engine import FeatureQuery
from perennial.features.labelled_rows import create_row_view
from perennial.governance import _decision_change
from perennial.governance._decision_change import Change
from perennial.modeling import registry
from perennial.modeling.registry import ModelVersion
from perennial.modeling.trained_model import TrainedModel
from perennial.monitoring import train_serve_skew
from perennial.spec.constraints import LOG_OBJECTIVES
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, duckdb_session, manifests
from perennial.storage.manifests import Manifest

#: Probability from which a binary prediction counts as positive, unless another is given.
DECISION_THRESHOLD = 0.5


@dataclass(frozen=True)
class Contribution:
    """What one feature adds to the raw score.

    Attributes:
        feature: its name.
        value: its value, as text; hidden if it is personal.
        contribution: what it adds, on `PredictionExplanation.scale`.
    """

    feature: str
    value: str
    contribution: float


@dataclass(frozen=True)
class PredictionExplanation:
    """One prediction, explained.

    Attributes:
        model: name of the model.
        partition: partition of the row.
        key: values of the row's key, by column.
        version: the version that made the prediction.
        trained_on: partitions that this version was fitted on.
        scored_at: when the partition was scored (UTC).
        run_id: the Airflow run that scored it.
        prediction: the stored prediction.
        reproduced: whether the version predicts the same from the same features now.
        row: the published row, by column; values of personal columns are hidden.
        scale: what the raw score is.
        predicted_class: the class whose raw score is explained; empty unless there are several.
        base: the raw score before any feature counts.
        contributions: of each feature, the largest first; with `base`, they add up to `score`.
        score: the raw score.
        change: the smallest change of features that was found to change the decision; empty if none was found, or the
            prediction is no decision.
        decision: the decision in words; empty if the prediction is none.
    """

    model: str
    partition: str
    key: dict[str, str]
    version: str
    trained_on: str
    scored_at: str
    run_id: str
    prediction: float | str
    reproduced: bool
    row: dict[str, str]
    scale: str
    predicted_class: str
    base: float
    contributions: list[Contribution]
    score: float
    decision: str = ""
    change: list[Change] = field(default_factory=list)


def explain_prediction(
    spec: ModelSpec, partition: str, key: Mapping[str, str], threshold: float = DECISION_THRESHOLD
) -> PredictionExplanation:
    """Explain the stored prediction of one row.

    Args:
        spec: the model.
        partition: partition of the row.
        key: value of each column of the key, as text.
        threshold: binary models: probability from which the decision is positive.

    Raises:
        PerennialError: this is no partition or no key of the model.
        DataError: the row has no prediction, or was published again since it was scored.
        ArtifactError: the version's files are missing, or not what was recorded.
    """
    spec.cadence.parse(partition)
    scored = manifests.read(spec.name, "score", partition)
    if scored is None:
        raise DataError(
            "the partition has not been scored", "score it first", model=spec.name, partition=partition
        )
    stored = read_row(spec, "predictions", partition, key)
    number = str(stored.column(spec.lake_column("model_version"))[0].as_py())
    version = registry.as_recorded(registry.get_version(spec.name, number))
    trained, model = registry.load_spec(version), registry.load_model(version)
    row = _published_row(spec, trained, partition, key, scored)
    features = _features_as_scored(trained, version, scored).compute(row)
    matrix = model.encoding.encode(features)
    prediction = stored.column(spec.lake_column("prediction"))[0].as_py()
    chosen = model.classes.index(str(prediction)) if model.classes else None
    parts, bases = model.explain(matrix)
    scores = model.predict_margin(matrix)[0]
    contributions, base, score = (v if chosen is None else v[chosen] for v in (parts[0], bases[0], scores))
    hidden = set(spec.personal_names)
    values = {name: features.column(name)[0].as_py() for name in model.encoding.columns}
    explained = [
        Contribution(name, HIDDEN_VALUE if name in hidden else _text(values[name]), float(c))
        for name, c in zip(model.encoding.columns, contributions, strict=True)
    ]
    decision, change = _decision_change.find(model, version, matrix, threshold=threshold, hidden=hidden)
    return PredictionExplanation(
        model=spec.name,
        partition=partition,
        key=dict(key),
        version=number,
        trained_on=str(version.refit_range or version.trained_range),
        scored_at=scored.finished_at,
        run_id=scored.run_id,
        prediction=prediction,
        reproduced=not train_serve_skew.count_changed_predictions(model, [prediction], matrix),
        row={c: HIDDEN_VALUE if c in hidden else _text(row.column(c)[0].as_py()) for c in spec.data.columns},
        scale=score_scale(trained, model),
        predicted_class="" if chosen is None else model.classes[chosen],
        base=float(base),
        contributions=sorted(explained, key=lambda c: -abs(c.contribution)),
        score=float(score),
        decision=decision,
        change=change,
    )


def parse_key(spec: ModelSpec, texts: Sequence[str]) -> dict[str, str]:
    """The key of a row, as people write it: ``column=value`` for each column, or the value alone of a single one.

    Raises:
        PerennialError: a column of the key is missing, or there are others.
    """
    columns = spec.data.key
    if len(columns) == len(texts) == 1:
        return {columns[0]: texts[0].removeprefix(f"{columns[0]}=")}
    parsed = dict(text.partition("=")[::2] for text in texts)
    if set(parsed) != set(columns):
        example = " ".join(f"{column}=…" for column in columns)
        raise PerennialError(
            f"a row of {spec.name} has the key {', '.join(columns)}",
            f"give each of these columns: {example}",
            model=spec.name,
        )
    return {column: parsed[column] for column in columns}


def read_row(spec: ModelSpec, table: str, partition: str, key: Mapping[str, str]) -> pa.Table:
    """The row of a table that has a key.

    Raises:
        DataError: there is none.
    """
    with duckdb_session.connect(threads=1) as con:
        if table == "published":
            readable = create_row_view(con, "__rows", spec, None, partition, partition)
        else:
            uri = delta_tables.table_uri(table, spec.name)
            readable = duckdb_session.create_view(con, "__rows", uri, None, partition, partition)
        if readable:
            matches = " AND ".join(
                f"{quote_identifier(c)} = TRY_CAST(? AS {SQL_TYPES[spec.data.columns[c]]})" for c in key
            )
            query = f"SELECT * FROM __rows WHERE {matches} LIMIT 1"
            rows: pa.Table = con.sql(query, params=list(key.values())).to_arrow_table()
            if rows.num_rows:
                return rows
    words = {"predictions": "prediction", "published": "published row"}[table]
    raise DataError(
        f"there is no {words} with this key ({', '.join(key)})",
        f"`perennial predictions {spec.name} --date {partition}` prints predictions with their keys",
        model=spec.name,
        partition=partition,
    )


def _published_row(
    spec: ModelSpec, trained: ModelSpec, partition: str, key: Mapping[str, str], scored: Manifest
) -> pa.Table:
    """The row that was scored, with the columns that the version's features read.

    Raises:
        DataError: the partition was published again since.
    """
    files = delta_tables.files_by_partition(delta_tables.table_uri("published", spec.name)).get(partition, [])
    if delta_tables.files_digest(files) != scored.inputs["rows"]:
        raise DataError(
            "the partition was published again since it was scored: the rows that were scored are no longer the "
            "published ones",
            f"score it again: `perennial run score --model {spec.name} --start {partition}`",
            model=spec.name,
            partition=partition,
        )
    return read_row(trained, "published", partition, key)


def _features_as_scored(trained: ModelSpec, version: ModelVersion, scored: Manifest) -> FeatureQuery:
    """The version's features at the table versions that scoring read.

    Raises:
        DataError: scoring read another copy of a reference table than the spec joins.
        StorageError: an old version of a table is no longer stored.
    """
    query = serving_log.features_as_scored(trained, scored, version.version, {})
    if query is None:
        raise DataError(
            "it was scored with another copy of a reference table, before the spec changed",
            "score it again with force",
            model=trained.name,
            partition=scored.key,
        )
    return query


def score_scale(spec: ModelSpec, model: TrainedModel) -> str:
    """What the raw score is, in words."""
    if spec.task == "binary":
        return "log odds"
    if spec.task == "multiclass":
        return "score of the class before softmax"
    if spec.task == "ranking":
        return "score"
    return (
        "logarithm of the prediction"
        if spec.objective in LOG_OBJECTIVES and not model.design
        else "prediction"
    )


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
