"""The monitor step: drift of columns, signals and performance of the champion, verdict, report."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from perennial.core import dates, runtime
from perennial.core.errors import ArtifactError
from perennial.core.settings import settings
from perennial.lifecycle import retraining, trial_evaluation, trials
from perennial.modeling import registry
from perennial.monitoring import (
    drift_attribution,
    drift_verdict,
    histograms,
    performance,
    report,
    results,
    retraining_gain,
    signal_evaluation,
    window_counts,
)
from perennial.monitoring.baseline import load_baseline
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, manifests, object_store
from perennial.storage.manifests import Manifest

if TYPE_CHECKING:
    from perennial.modeling.trained_model import TrainedModel
    from perennial.monitoring.baseline import MonitoringBaseline
    from perennial.monitoring.drift_verdict import ColumnDrift
    from perennial.monitoring.histograms import BinCounts, ReferenceColumn
    from perennial.monitoring.results import MonitoringResult, PerformanceMetrics, PerformanceResult
    from perennial.monitoring.signals import Signal

#: Most drifted columns that are listed in the result; the table has all of them.
MAX_NAMED_COLUMNS = 20


@dataclass
class _Evaluation:
    """The evaluation of a window.

    Attributes:
        result: result of the step; the report's URI is added once it is written.
        columns: the compared columns.
        drift_report: Evidently's report.
    """

    result: MonitoringResult
    columns: list[ColumnDrift] = field(default_factory=list)
    drift_report: report.DriftReport = field(default_factory=report.DriftReport)


def monitor(spec: ModelSpec, *, as_of: str, force: bool = False, run_id: str = "") -> MonitoringResult:
    """Evaluate the champion on the window of partitions that ends with ``as_of``.

    The verdict and the compared columns replace the partition ``as_of`` of the lake's table ``monitoring``; the report
    is stored as HTML and JSON. A verdict that cannot be computed is ``undetermined``.

    Args:
        spec: the model.
        as_of: last partition date of the window.
        force: evaluate again even if the same inputs were evaluated before.
        run_id: id of the Airflow run, for the manifest.

    Raises:
        RegistryError: MLflow cannot be reached.
        ArtifactError: an artifact that training stored for monitoring is damaged.
    """
    started = time.monotonic()
    dates.parse_date(as_of, "as_of")
    start = dates.add_days(as_of, 1 - spec.monitoring.window_days)
    champion = registry.get_champion(spec)
    inputs = _inputs(spec, champion, start, as_of)
    completed = None if force else manifests.find_completed(spec.name, "monitor", as_of, inputs)
    if completed:
        return cast("MonitoringResult", completed.result | {"status": "unchanged"})
    if champion is None:
        reason = "there is no champion yet: train and promote one first"
        evaluation = _Evaluation(_undetermined_result(start, as_of, reason))
    else:
        evaluation = _evaluate(spec, champion, start, as_of)
    result = evaluation.result
    _write_report(spec, evaluation)
    table = results.to_table(result, evaluation.columns)
    version = delta_tables.replace(delta_tables.table_uri("monitoring", spec.name), table, as_of)
    manifests.write(
        Manifest(
            spec.name,
            "monitor",
            as_of,
            inputs,
            dict(result),
            outputs={"monitoring": version, "report": result["report"]},
            rows_in=len(table),
            rows_out=len(table),
            model_version=result["model_version"],
            run_id=run_id,
        ),
        started,
    )
    return result


def _inputs(
    spec: ModelSpec, champion: registry.ModelVersion | None, start: str, as_of: str
) -> dict[str, Any]:
    """What the result depends on, for the manifest."""
    published = delta_tables.table_uri("published", spec.name)
    # The retraining gain also needs partitions before the window.
    first = dates.add_days(start, -retraining_gain.LOOKBACK_PARTITIONS)
    trial = trials.active_trial(spec)
    inputs = {
        "champion": champion.version if champion else None,
        "digest": champion.digest if champion else None,
        "spec": spec.digest,
        "rows": delta_tables.partitions_digest(published, first, as_of),
        "predictions": delta_tables.partitions_digest(
            delta_tables.table_uri("predictions", spec.name), start, as_of
        ),
        "served": delta_tables.partitions_digest(delta_tables.table_uri("served", spec.name), start, as_of),
        "trial": trial["model_version"] if trial else None,
        "previous_verdicts": [list(v) for v in results.previous_verdicts(spec, champion, as_of)],
    }
    if spec.label.source is not None:
        inputs["labels"] = delta_tables.partitions_digest(
            delta_tables.table_uri("labels", spec.name), first, performance.last_labelled_date(spec, as_of)
        )
    if spec.monitoring.reference != "training":
        inputs["reference"] = delta_tables.partitions_digest(
            published, _reference_date(spec, start), _reference_date(spec, as_of)
        )
    return inputs


def _undetermined_result(start: str, as_of: str, reason: str = "") -> MonitoringResult:
    return {
        "as_of": as_of,
        "start": start,
        "verdict": "undetermined",
        "reason": reason,
        "drift_share": None,
        "evaluated_share": 0.0,
        "drifted": [],
        "columns": {},
        "model_version": None,
        "champion_as_of": None,
        "suspicious": None,
        "performance": {"verdict": "undetermined", "reason": "there is nothing to measure", "degraded": None},
        "signals": {},
        "trial": None,
        "report": "",
        "status": "monitored",
    }


def _evaluate(spec: ModelSpec, champion: registry.ModelVersion, start: str, as_of: str) -> _Evaluation:
    """Count and compare the columns, then evaluate the champion while Evidently renders its report."""
    model = registry.load_model(champion)
    _, reference = histograms.read_reference(registry.load_json_artifact(champion, "reference.json"))
    sample_size = spec.monitoring.report_rows
    features, feature_sample = window_counts.count_features(
        registry.load_spec(champion), reference, start, as_of, sample_size
    )
    predictions, prediction_sample = window_counts.count_predictions(
        spec, reference, champion.version, start, as_of, sample_size
    )
    columns = drift_verdict.compare_columns(
        _reference_counts(spec, champion, reference, start, as_of),
        features,
        predictions,
        registry.load_json_artifact(champion, "importance.json"),
        spec.monitoring,
    )
    baseline = load_baseline(champion, spec)
    columns = [_with_attributed_loss(column, reference, features, baseline) for column in columns]
    # Evidently renders in Python while libraries that release the interpreter's lock evaluate the signals.
    with ThreadPoolExecutor(1, thread_name_prefix="report") as pool:
        drift_report = pool.submit(
            report.evidently_drift_report,
            [c for c in columns if c.column not in spec.data.personal],
            _reference_sample(champion),
            feature_sample | prediction_sample,
            [name for name, column in reference.items() if column.kind == "categorical"],
            spec.monitoring.drift_share,
        )
        result = _evaluate_champion(spec, champion, model, baseline, columns, start, as_of)
        return _Evaluation(result, columns, drift_report.result())


def _evaluate_champion(
    spec: ModelSpec,
    champion: registry.ModelVersion,
    model: TrainedModel,
    baseline: MonitoringBaseline,
    columns: Sequence[ColumnDrift],
    start: str,
    as_of: str,
) -> MonitoringResult:
    """The verdict, the performance, every signal, and the trial of a challenger."""
    summary = drift_verdict.summarize(columns, spec.monitoring)
    previous = [v.suspicious for v in results.previous_verdicts(spec, champion, as_of)]
    verdict, persistence = drift_verdict.verdict_with_persistence(
        summary.suspicious, previous, spec.monitoring
    )
    evaluation = registry.load_json_artifact(champion, "evaluation.json")
    measured = performance.measure(
        spec,
        start=start,
        as_of=as_of,
        model_version=champion.version,
        metrics_at_training=evaluation.get("metrics", {}),
        classes=model.classes,
    )
    labels_until = performance.last_labelled_date(spec, as_of)
    evaluated = signal_evaluation.evaluate_signals(
        spec, champion, model, baseline, start, as_of, labels_until
    )
    row_signals = {name: signal.as_dict() for name, signal in evaluated.items()}
    harmless = verdict == "drifted" and not retraining.harm_reason(spec, row_signals)
    drift = signal_evaluation.drift_signals(verdict, summary.reason, columns, harmless)
    statuses = [c.status for c in columns]
    result = _undetermined_result(start, as_of, "; ".join(r for r in (summary.reason, persistence) if r))
    result.update(
        {
            "verdict": verdict,
            "suspicious": summary.suspicious,
            "drift_share": None if summary.drift_share is None else round(summary.drift_share, 6),
            "evaluated_share": round(summary.evaluated_share, 6),
            "drifted": [c.column for c in columns if c.status == "drifted"][:MAX_NAMED_COLUMNS],
            "columns": {s: statuses.count(s) for s in ("stable", "drifted", "undetermined")},
            "model_version": champion.version,
            "champion_as_of": champion.as_of or None,
            "performance": _performance_result(measured, evaluated["performance"]),
            "changed": _changed(spec, champion),
            "new_rows": signal_evaluation.new_row_share(spec, champion, as_of),
            "signals": {name: signal.as_dict() for name, signal in drift.items()} | row_signals,
            "trial": trial_evaluation.evaluate_trial(spec, champion, as_of, labels_until),
        }
    )
    return result


def _performance_result(measured: PerformanceMetrics, signal: Signal) -> PerformanceResult:
    reason = "; ".join(r for r in (measured["reason"], signal.reason) if r)
    degraded = None if signal.state == "undetermined" else signal.state == "bad"
    return {
        **measured,
        "reason": reason,
        "verdict": "dropped" if degraded else signal.state,
        "degraded": degraded,
    }


def _reference_date(spec: ModelSpec, day: str) -> str:
    """The reference date of a date; a year counts as 52 weeks, to compare the same weekdays."""
    days = spec.monitoring.window_days if spec.monitoring.reference == "rolling" else 364
    return dates.add_days(day, -days)


def _reference_counts(
    spec: ModelSpec,
    champion: registry.ModelVersion,
    reference: Mapping[str, ReferenceColumn],
    start: str,
    as_of: str,
) -> Mapping[str, ReferenceColumn]:
    """The reference columns, with the counts of the window that the policy compares with.

    The bins are those of the training. If nothing was published in that window, all counts are 0 and no column can be
    evaluated.
    """
    if spec.monitoring.reference == "training":
        return reference
    first, last = _reference_date(spec, start), _reference_date(spec, as_of)
    features, _ = window_counts.count_features(registry.load_spec(champion), reference, first, last, 1)
    predictions, _ = window_counts.count_predictions(spec, reference, champion.version, first, last, 1)
    counted = features.columns | predictions.columns
    return {
        name: replace(column, counts=counted.get(name) or [0] * len(column.counts))
        for name, column in reference.items()
    }


def _with_attributed_loss(
    column: ColumnDrift,
    reference: Mapping[str, ReferenceColumn],
    window: BinCounts,
    baseline: MonitoringBaseline,
) -> ColumnDrift:
    """Add the rise of the expected loss that a column's drift accounts for, if it is known."""
    counts = window.columns.get(column.column)
    expected_losses = baseline.expected_loss_by_bin.get(column.column)
    if not counts or not expected_losses or not baseline.loss:
        return column
    rise = drift_attribution.loss_attributable_to_drift(
        reference[column.column].counts, counts, expected_losses
    )
    return column if rise is None else replace(column, attributed_loss=round(rise / baseline.loss, 6))


def _changed(spec: ModelSpec, champion: registry.ModelVersion) -> list[str]:
    """Which of ``spec`` and ``code`` differ from those that the champion was trained with."""
    present = {"spec": ("spec_digest", spec.digest), "code": ("code_version", runtime.code_version())}
    return [name for name, (tag, value) in present.items() if champion.tags.get(tag, value) != value]


def _reference_sample(champion: registry.ModelVersion) -> dict[str, pa.ChunkedArray[Any]]:
    """Read the stored sample of training rows, by column.

    Empty if it cannot be read, because only the report needs it.
    """
    try:
        table = pq.read_table(registry.download_artifact(champion.run_id, "reference.parquet"))
    except (ArtifactError, pa.ArrowException, OSError):
        return {}
    return dict(zip(table.column_names, table.columns, strict=True))


def _write_report(spec: ModelSpec, evaluation: _Evaluation) -> None:
    """Write the report as HTML and JSON, and add its URI to the result."""
    result, drift_report = evaluation.result, evaluation.drift_report
    path = f"{settings().lake}/reports/{spec.name}/monitor/{result['as_of']}"
    title = f"{spec.name}, {spec.monitoring.window_days} days to {result['as_of']}"
    trial_summary = trials.summarise(result["trial"], spec.metric) if result["trial"] else ""
    page = report.render_page(title, result, evaluation.columns, drift_report, trial_summary)
    object_store.write_text(f"{path}.html", page)
    result["report"] = f"{path}.html"
    content = {
        "result": result,
        "columns": [asdict(column) for column in evaluation.columns],
        "omitted_columns": drift_report.omitted_columns,
        "evidently": drift_report.results,
    }
    object_store.write_text(f"{path}.json", json.dumps(content, indent=1, default=str))
