"""The artifacts of a trained model: spec, importance, reference, monitoring baseline."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from perennial.core.sql import text_literal
from perennial.features.labelled_rows import read_labelled_rows
from perennial.modeling.registry import ModelVersion
from perennial.modeling.trained_model import TrainedModel, prediction_column
from perennial.monitoring import baseline, histograms
from perennial.monitoring.partition_sample import PartitionSample, sample_partitions
from perennial.storage import delta_tables, duckdb_session, pages
from perennial.training.challenger_evaluation import TrainingSource
from perennial.training.windows import Windows


@dataclass(frozen=True)
class ModelArtifacts:
    """The files that are stored with a model.

    Attributes:
        documents: JSON documents by file name.
        files: other files.
        holdout: sample of the held-out rows, encoded for the model that was evaluated; None where it is not kept.
    """

    documents: dict[str, Any]
    files: list[Path]
    holdout: PartitionSample | None = None


@dataclass(frozen=True)
class _Reference:
    """The training rows, prepared for the comparison in monitoring.

    Attributes:
        content: the columns' bins and counts, as `histograms.make_reference` returns them.
        sample: file with a sample of the rows, for the report; None if it could not be drawn.
    """

    content: dict[str, Any]
    sample: Path | None


def build_artifacts(
    source: TrainingSource,
    model: TrainedModel,
    windows: Windows,
    folder: Path,
    champion: ModelVersion | None,
    share: float = 1.0,
) -> ModelArtifacts:
    """Build the artifacts of a trained model, except its evaluation.

    Args:
        source: the data of the training.
        model: the model.
        windows: dates of the training.
        folder: working folder.
        champion: the champion, whose monitoring baseline completes the new one if there are few held-out dates; None
            if there is no champion.
        share: about which share of the training rows the model has learned.

    Raises:
        DataError: features cannot be computed.
    """
    spec = source.spec
    holdout = _sample_holdout(source, model, windows)
    # DuckDB counts the reference while numpy simulates the baseline: neither uses all cores.
    with ThreadPoolExecutor(1, thread_name_prefix="reference") as pool:
        counting = pool.submit(_build_reference, source, model, windows, folder, share)
        monitoring_baseline, error_model = baseline.build_baseline(
            spec, model, holdout, lambda: histograms.read_reference(counting.result().content)[1]
        )
        reference = counting.result()
    if champion is not None and len(windows.holdout) < spec.training.holdout.partitions(spec.cadence):
        monitoring_baseline = baseline.inherit_from_champion(
            monitoring_baseline, baseline.stored_baseline(champion)
        )
    files = [reference.sample] if reference.sample else []
    if error_model is not None:
        error_model.save_model(folder / baseline.ERROR_MODEL_ARTIFACT)
        files.append(folder / baseline.ERROR_MODEL_ARTIFACT)
    documents = {
        "spec.json": spec.bundle(),
        "importance.json": model.importance(),
        "reference.json": reference.content,
        baseline.ARTIFACT: monitoring_baseline,
    }
    return ModelArtifacts(documents, files, holdout)


def _sample_holdout(source: TrainingSource, model: TrainedModel, windows: Windows) -> PartitionSample:
    """Sample rows of the held-out dates, with their labels."""
    spec, dates = source.spec, windows.holdout_range
    return sample_partitions(
        spec,
        model,
        source.features,
        dates.start,
        dates.end,
        labels_until=dates.end,
        columns=[*spec.monitoring.slices, *spec.monitoring.fairness],
        version=source.version,
        labels_version=source.labels_version,
    )


def _build_reference(
    source: TrainingSource, model: TrainedModel, windows: Windows, folder: Path, share: float
) -> _Reference:
    """Count the features and predictions of the training rows, and sample some rows."""
    spec, features = source.spec, source.features
    rows_file = folder / "reference_rows.parquet"
    _write_reference_rows(rows_file, source, model, windows, share)
    con = duckdb_session.connect()
    relation = f"read_parquet({text_literal(str(rows_file))}, hive_partitioning=false)"
    con.execute(f"CREATE VIEW __reference AS SELECT * FROM {relation}")
    multiclass = spec.task == "multiclass"
    categorical = [*features.categorical, *(["prediction"] if multiclass else [])]
    numeric = [c for c in features.columns if c not in categorical] + ([] if multiclass else ["prediction"])
    content = histograms.make_reference(
        con,
        "__reference",
        numeric,
        categorical,
        window=spec.monitoring.window.partitions(spec.cadence),
        min_rows=spec.monitoring.min_rows,
        personal=spec.personal_names,
        cadence=spec.cadence,
    )

    def write_sample() -> Path:
        rows = histograms.sample_rows(
            con,
            "__reference",
            n=spec.monitoring.report_rows,
            seed=spec.training.seed,
            personal=spec.personal_names,
        )
        pq.write_table(rows, folder / "reference.parquet")
        return folder / "reference.parquet"

    return _Reference(content, pages.attempt("the report's sample of training rows", write_sample)[0])


def _write_reference_rows(
    path: Path, source: TrainingSource, model: TrainedModel, windows: Windows, share: float
) -> None:
    """Write features, prediction and partition date of the rows that the model has learned."""
    writer = None
    days = windows.fit + windows.valid
    for table in read_labelled_rows(source.spec, days, source.version, source.labels_version, share):
        rows = source.features.compute(table)
        rows = rows.append_column("prediction", prediction_column(model, model.predict(rows)))
        rows = rows.append_column(delta_tables.PARTITION, table.column(delta_tables.PARTITION))
        writer = writer or pq.ParquetWriter(path, rows.schema)
        writer.write_table(rows)
    assert isinstance(writer, pq.ParquetWriter)
    writer.close()
