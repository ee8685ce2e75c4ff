"""What is stored beside a trained model: the reference of its features and the monitoring's baseline."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.core.sql import text_literal
from perennial.features.labelled_rows import read_labelled_rows
from perennial.modeling import registry
from perennial.modeling.trained_model import TrainedModel, prediction_column
from perennial.storage import delta_tables, duckdb_session
from perennial.training.windows import Windows

if TYPE_CHECKING:
    from perennial.training.challenger_evaluation import TrainingSource


def build_artifacts(
    source: TrainingSource,
    model: TrainedModel,
    split: Windows,
    folder: Path,
    champion: registry.ModelVersion | None,
) -> tuple[dict[str, Any], list[Path]]:
    """What travels with the model: its spec, the importance of its features, the reference that drift is judged by."""
    from perennial.monitoring import baseline, histograms
    from perennial.monitoring.nightly_sample import sample_nights

    spec = source.spec
    gains = model.booster.get_score(importance_type="total_gain")
    whole = sum(gains.values()) or 1.0
    importance = {c: round(float(gains.get(c, 0.0)) / whole, 6) for c in model.encoding.columns}
    quiet = sample_nights(
        spec,
        model,
        source.features,
        split.holdout[0],
        split.holdout[-1],
        labels_until=split.holdout[-1],
        columns=[*spec.monitoring.slices, *spec.monitoring.fairness],
        version=source.version,
        labels_version=source.labels_version,
    )
    # The one is counted by DuckDB, the other simulated by numpy: neither has work for all cores.
    with ThreadPoolExecutor(1, thread_name_prefix="reference") as pool:
        counted = pool.submit(_build_reference, source, model, split, folder)
        watched, errors = baseline.build_baseline(
            spec, model, quiet, lambda: histograms.read_reference(counted.result()[0])[1]
        )
        reference, sample = counted.result()
    if champion is not None and len(split.holdout) < spec.training.holdout_days:
        watched = baseline.inherit_from_champion(watched, baseline.stored_baseline(champion))
    kept = [sample]
    if errors is not None:
        errors.save_model(folder / baseline.ERROR_MODEL_ARTIFACT)
        kept.append(folder / baseline.ERROR_MODEL_ARTIFACT)
    made = {"spec.json": spec.bundle(), "importance.json": importance, "reference.json": reference}
    return made | {baseline.ARTIFACT: watched}, kept


def _build_reference(
    source: TrainingSource, model: TrainedModel, split: Windows, folder: Path
) -> tuple[dict[str, Any], Path]:
    """The training rows' columns and predictions as `histograms.make_reference` counts them; a file with some rows."""
    import pyarrow.parquet as pq

    from perennial.monitoring import histograms

    spec, features = source.spec, source.features
    path = folder / "reference_rows.parquet"
    writer = None
    for table in read_labelled_rows(spec, split.fit + split.valid, source.version, source.labels_version):
        rows = features.compute(table)
        rows = rows.append_column("prediction", prediction_column(model, model.predict(rows)))
        rows = rows.append_column(delta_tables.PARTITION, table.column(delta_tables.PARTITION))
        writer = writer or pq.ParquetWriter(path, rows.schema)
        writer.write_table(rows)
    assert isinstance(writer, pq.ParquetWriter)
    writer.close()
    con = duckdb_session.connect()
    con.execute(f"CREATE VIEW reference AS SELECT * FROM read_parquet({text_literal(str(path))})")
    multiclass = spec.task == "multiclass"
    categorical = [*features.categorical, *(["prediction"] if multiclass else [])]
    numeric = [c for c in features.columns if c not in categorical] + ([] if multiclass else ["prediction"])
    reference = histograms.make_reference(
        con,
        "reference",
        numeric,
        categorical,
        window_days=spec.monitoring.window_days,
        min_rows=spec.monitoring.min_rows,
        personal=spec.data.personal,
    )
    sample = folder / "reference.parquet"
    pq.write_table(
        histograms.sample_rows(
            con,
            "reference",
            n=spec.monitoring.report_rows,
            seed=spec.training.seed,
            personal=spec.data.personal,
        ),
        sample,
    )
    return reference, sample
