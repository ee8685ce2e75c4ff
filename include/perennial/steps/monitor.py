"""The monitor step: drift of columns, signals and performance of the champion, verdict, report."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast

from perennial.core import runtime
from perennial.core.durations import Duration
from perennial.core.errors import DataError, PerennialError
from perennial.core.partitions import PartitionRange
from perennial.core.settings import settings
from perennial.features import point_in_time, reference_copies, reference_tables
from perennial.ingestion import model_tables
from perennial.lifecycle import backlog, retraining, trial_evaluation, trials
from perennial.lifecycle import champion as champion_module
from perennial.modeling import registry
from perennial.modeling.evaluation_charts import Chart, performance_charts
from perennial.monitoring import (
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
from perennial.monitoring.pictures import feature_histograms
from perennial.monitoring.results import PreviousVerdict
from perennial.monitoring.signals import Signal
from perennial.spec import spec_changes
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, manifests, pages
from perennial.storage.manifests import Manifest

if TYPE_CHECKING:
    from perennial.modeling.trained_model import TrainedModel
    from perennial.monitoring.baseline import MonitoringBaseline
    from perennial.monitoring.drift_verdict import ColumnDrift
    from perennial.monitoring.histograms import BinCounts, ReferenceColumn
    from perennial.monitoring.results import MonitoringResult

#: Most drifted columns that are listed in the result; the table has all of them.
MAX_NAMED_COLUMNS = 20
#: How long before a window earlier ones are looked for.
MAX_LOOKBACK = Duration(366, "day")
#: Most earlier windows that the report's charts show.
MAX_WINDOWS = 60
log = logging.getLogger("perennial")


@dataclass
class _Evaluation:
    """The evaluation of a window.

    Attributes:
        result: result of the step; the report's URI is added once it is written.
        columns: the compared columns.
        drift_report: Evidently's report.
        charts: charts of the window's predictions compared with labels, by name.
        histograms: the compared columns with their histograms, for a file beside the report; empty without a champion.
    """

    result: MonitoringResult
    columns: list[ColumnDrift] = field(default_factory=list)
    drift_report: report.DriftReport = field(default_factory=report.DriftReport)
    charts: Mapping[str, Chart] = field(default_factory=dict)
    histograms: Mapping[str, Any] = field(default_factory=dict)


def monitor(
    spec: ModelSpec, *, as_of: str, force: bool = False, run_id: str = "", catch_up: bool = False
) -> MonitoringResult:
    """Evaluate the champion on the window of partitions that ends with ``as_of``.

    The verdict and the compared columns replace the partition ``as_of`` of the lake's table ``monitoring``; the report
    is stored as HTML and JSON. A verdict that cannot be computed is ``undetermined``.

    Args:
        spec: the model.
        as_of: last partition date of the window.
        force: evaluate again even if the same inputs were evaluated before.
        run_id: id of the Airflow run, for the manifest.
        catch_up: first evaluate earlier partitions whose scheduled verdict is missing, at most `backlog.most_per_run`;
            their failures are only logged.

    Raises:
        RegistryError: MLflow cannot be reached.
        ArtifactError: an artifact that training stored for monitoring is damaged.
    """
    spec.cadence.parse(as_of, "as_of")
    if catch_up:
        _catch_up(spec, as_of, run_id)
    return _monitor(spec, as_of, force, run_id)


def _catch_up(spec: ModelSpec, before: str, run_id: str) -> None:
    """Evaluate some of the partitions whose verdict is overdue. No decision follows from a late verdict."""
    started = time.monotonic()

    def monitor_one(day: str) -> None:
        try:
            _monitor(spec, day, False, run_id)
        except Exception as error:
            backlog.record_champion_failure(spec, "monitor", day, error)
            raise

    try:
        overdue = backlog.unmonitored(spec, spec.cadence.shift(before, -1))
    except PerennialError as error:
        log.warning("It is not known which verdicts before %s are missing: %s", before, error)
        return
    backlog.work_off(spec, "monitor", overdue.next_batch, monitor_one, started)


def _monitor(spec: ModelSpec, as_of: str, force: bool, run_id: str) -> MonitoringResult:
    """Evaluate the champion on one window, without catching up."""
    started = time.monotonic()
    start = _window_start(spec, as_of)
    champion, deviation = champion_module.get_champion(spec, partition=as_of, actor="monitoring")
    external_change = deviation or champion_module.changed_within(spec, _since_previous(spec, as_of))
    overdue = _overdue(spec, start, as_of)
    difference = _difference(spec, champion) if champion else ""
    previous = [] if difference else _previous_verdicts(spec, champion, as_of)
    inputs = _inputs(spec, champion, start, as_of)
    inputs |= {
        "backlog": overdue,
        "previous_verdicts": [list(verdict) for verdict in previous],
        "external_change": external_change,
    }
    completed = None if force else manifests.find_completed(spec.name, "monitor", as_of, inputs)
    if completed:
        return cast("MonitoringResult", completed.result | {"status": "unchanged"})
    if champion is None:
        reason = deviation or "there is no champion yet: train and promote one first"
        evaluation = _Evaluation(results.undetermined_result(start, as_of, reason))
    elif difference:
        evaluation = _Evaluation(_not_comparable_result(spec, champion, start, as_of, difference))
    else:
        evaluation = _evaluate(spec, champion, start, as_of, [v.suspicious for v in previous])
    result = evaluation.result
    if champion or deviation:  # before its first champion, a model has no predictions to keep fresh
        result["signals"]["backlog"] = signal_evaluation.backlog_signal(overdue).as_dict()
    result["signals"]["champion"] = _champion_signal(champion, external_change).as_dict()
    _require_complete_window(result, overdue)
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


def _since_previous(spec: ModelSpec, as_of: str) -> PartitionRange:
    """The partitions after those of the scheduled run before, up to a date."""
    for key in _earlier(spec, as_of):
        if backlog.has_tick(spec, spec.schedule.monitor, key):
            return spec.cadence.range(spec.cadence.shift(key, 1), as_of)
    return spec.cadence.range(as_of)


def _earlier(spec: ModelSpec, as_of: str) -> Iterator[str]:
    """The partitions before one, the latest first, as far as is looked back."""
    for n in range(1, MAX_LOOKBACK.partitions(spec.cadence)):
        yield spec.cadence.shift(as_of, -n)


def _window_start(spec: ModelSpec, as_of: str) -> str:
    """The first partition of the window that ends with ``as_of``."""
    return spec.cadence.shift(as_of, 1 - spec.monitoring.window.partitions(spec.cadence))


def _require_complete_window(result: MonitoringResult, overdue: Mapping[str, Sequence[str]]) -> None:
    """Let a verdict not be ``ok`` if partitions of its window are not published, or not scored."""
    start, as_of = result["start"], result["as_of"]
    missing = sorted({d for stage in ("published", "scored") for d in overdue[stage] if start <= d <= as_of})
    if result["verdict"] == "ok" and missing:
        result["verdict"] = "undetermined"
        why = f"partitions of the window are not published or not scored: {', '.join(missing)}"
        result["reason"] = f"{why}; {result['reason']}"


def _overdue(spec: ModelSpec, start: str, as_of: str) -> dict[str, list[str]]:
    """The partitions that are due and not done, by stage; of those that cannot be done, the ones of the window."""
    first = {"labelled": spec.cadence.shift(start, -spec.label_delay)}
    return {
        stage: sorted((*of.overdue, *(day for day in of.failed if day >= first.get(stage, start))))
        for stage, of in backlog.before_monitoring(spec, as_of).items()
    }


def _inputs(
    spec: ModelSpec, champion: registry.ModelVersion | None, start: str, as_of: str
) -> dict[str, Any]:
    """What the result depends on, for the manifest."""
    published = delta_tables.table_uri("published", spec.name)
    # The retraining gain also needs partitions before the window.
    first = spec.cadence.shift(start, -retraining_gain.LOOKBACK_PARTITIONS)
    trial = trials.active_trial(spec)
    trained = registry.load_spec(champion) if champion else None
    inputs: dict[str, Any] = {
        "champion": champion.version if champion else None,
        "digest": champion.digest if champion else None,
        "spec": spec.digest,
        "rows": delta_tables.partitions_digest(published, first, as_of),
        "predictions": delta_tables.partitions_digest(
            delta_tables.table_uri("predictions", spec.name), start, as_of
        ),
        "served": delta_tables.partitions_digest(delta_tables.table_uri("served", spec.name), start, as_of),
        "trial": trial["model_version"] if trial else None,
        "references": reference_copies.versions_within(
            trained, reference_tables.sync_to_lake(trained), spec.cadence.keys(first, as_of)
        )
        if trained
        else {},
    }
    if trained and trained.feature_tables:  # at their latest versions, as scoring has brought them up to date
        inputs["tables"] = point_in_time.range_digests(trained, {}, first, as_of)
    if spec.label.source is not None:
        inputs["labels"] = delta_tables.partitions_digest(
            delta_tables.table_uri("labels", spec.name), first, performance.last_labelled_date(spec, as_of)
        )
    if spec.monitoring.reference != "training":
        inputs["reference"] = delta_tables.partitions_digest(
            published, window_counts.reference_date(spec, start), window_counts.reference_date(spec, as_of)
        )
    return inputs


def _difference(spec: ModelSpec, champion: registry.ModelVersion) -> str:
    """Why what exists is not what the spec describes; empty if it is."""
    if reasons := model_tables.conflicts(spec, (*model_tables.DATA_TABLES, *model_tables.SCORE_TABLES)):
        return f"the spec does not fit the tables in the lake ({'; '.join(reasons)}): see `perennial check`"
    difference = spec_changes.target_difference(registry.load_spec(champion), spec)
    return f"{difference}: train and promote a new version" if difference else ""


def _not_comparable_result(
    spec: ModelSpec, champion: registry.ModelVersion, start: str, as_of: str, difference: str
) -> MonitoringResult:
    """The result for a champion that does not predict what the spec describes."""
    reason = f"version {champion.version} cannot be monitored: {difference}"
    result = results.undetermined_result(start, as_of, reason)
    result["model_version"], result["champion_as_of"] = champion.version, champion.as_of or None
    result["changed"] = _changed(spec, champion)
    result["performance"]["reason"] = reason
    return result


def _evaluate(
    spec: ModelSpec,
    champion: registry.ModelVersion,
    start: str,
    as_of: str,
    previous: Sequence[bool | None],
) -> _Evaluation:
    """Count and compare the columns, then evaluate the champion while Evidently renders its report."""
    model, trained = registry.load_model(champion), registry.load_spec(champion)
    _, reference = histograms.read_reference(registry.load_json_artifact(champion, "reference.json"))
    sample_size = spec.monitoring.report_rows
    features, feature_sample = window_counts.count_features(trained, reference, start, as_of, sample_size)
    predictions, prediction_sample = window_counts.count_predictions(
        spec, reference, champion.version, start, as_of, sample_size
    )
    compared = window_counts.reference_counts(spec, champion, reference, start, as_of)
    columns = _compare_columns(spec, champion, compared, features, predictions)
    baseline = load_baseline(champion, spec_changes.as_trained(trained, spec))
    personal = {*spec.personal_names, *trained.personal_names}
    columns = [
        drift_verdict.with_attributed_loss(column, reference, features, baseline) for column in columns
    ]
    # Evidently renders in Python while libraries that release the interpreter's lock evaluate the signals.
    with ThreadPoolExecutor(1, thread_name_prefix="report") as pool:
        drift_report = pool.submit(
            report.evidently_drift_report,
            [c for c in columns if c.column not in personal],
            window_counts.reference_sample(champion),
            feature_sample | prediction_sample,
            [name for name, column in reference.items() if column.kind == "categorical"],
            spec.monitoring.drift_share,
        )
        charts: dict[str, Chart] = {}

        def draw(rows: performance.LabelledPredictions) -> None:
            drawn, _ = pages.attempt(
                "the charts of the window",
                lambda: performance_charts(trained.task, rows.y, rows.predicted, model.classes),
            )
            charts.update(drawn or {})

        result = _evaluate_champion(spec, champion, model, baseline, columns, start, as_of, previous, draw)
        drawn, _ = pages.attempt(
            "the histograms of the columns",
            lambda: feature_histograms.content(
                as_of, champion.version, columns, compared, (features, predictions), personal
            ),
        )
        return _Evaluation(result, columns, drift_report.result(), charts, drawn or {})


def _compare_columns(
    spec: ModelSpec,
    champion: registry.ModelVersion,
    reference: Mapping[str, ReferenceColumn],
    features: BinCounts,
    predictions: BinCounts,
) -> list[ColumnDrift]:
    """Compare the counts of a window with those that the policy compares with."""
    return drift_verdict.compare_columns(
        reference,
        features,
        predictions,
        registry.load_json_artifact(champion, "importance.json"),
        spec.monitoring,
    )


def _previous_verdicts(
    spec: ModelSpec, champion: registry.ModelVersion | None, as_of: str
) -> list[PreviousVerdict]:
    """The scheduled windows before a date that its verdict considers, latest first.

    Each is the stored one of this champion, or is evaluated now if there is none: what is stored depends on the order
    in which a backfill evaluates its partitions, and the verdict must not. For a date after the champion's training,
    only windows since then count.
    """
    needed = spec.monitoring.persistence[1] - 1
    if champion is None or not needed:
        return []
    stored = {v.day: v.suspicious for v in results.previous_verdicts(spec, champion, as_of)}
    after = champion.as_of if as_of > champion.as_of else ""
    verdicts: list[PreviousVerdict] = []
    for day in _earlier(spec, as_of):
        if day <= after or sum(v.suspicious is not None for v in verdicts) == needed:
            break
        if len(verdicts) < results.MAX_PREVIOUS * needed and backlog.has_tick(
            spec, spec.schedule.monitor, day
        ):
            suspicious = stored[day] if day in stored else _is_suspicious(spec, champion, day)
            verdicts.append(PreviousVerdict(day, suspicious))
    return verdicts


def _is_suspicious(spec: ModelSpec, champion: registry.ModelVersion, as_of: str) -> bool | None:
    """Whether a window alone counts as drifted; None if that cannot be evaluated."""
    start = _window_start(spec, as_of)
    trained = registry.load_spec(champion)
    _, reference = histograms.read_reference(registry.load_json_artifact(champion, "reference.json"))
    try:
        features, _ = window_counts.count_features(trained, reference, start, as_of, 1)
    except DataError:
        return None
    if not features.rows:
        return None
    predictions, _ = window_counts.count_predictions(spec, reference, champion.version, start, as_of, 1)
    compared = window_counts.reference_counts(spec, champion, reference, start, as_of)
    columns = _compare_columns(spec, champion, compared, features, predictions)
    return drift_verdict.summarize(columns, spec.monitoring).suspicious


def _evaluate_champion(
    spec: ModelSpec,
    champion: registry.ModelVersion,
    model: TrainedModel,
    baseline: MonitoringBaseline,
    columns: Sequence[ColumnDrift],
    start: str,
    as_of: str,
    previous: Sequence[bool | None],
    on_rows: Callable[[performance.LabelledPredictions], object],
) -> MonitoringResult:
    """The verdict, the performance, every signal, and the trial of a challenger."""
    summary = drift_verdict.summarize(columns, spec.monitoring)
    drift_state, persistence = drift_verdict.verdict_with_persistence(
        summary.suspicious, previous, spec.monitoring
    )
    evaluation = registry.load_json_artifact(champion, "evaluation.json")
    as_trained = spec_changes.as_trained(registry.load_spec(champion), spec)
    measured = performance.measure(
        as_trained,
        start=start,
        as_of=as_of,
        model_version=champion.version,
        metrics_at_training=evaluation.get("metrics", {}),
        classes=model.classes,
        on_rows=on_rows,
    )
    labels_until = performance.last_labelled_date(spec, as_of)
    evaluated = signal_evaluation.evaluate_signals(
        as_trained, champion, model, baseline, start, as_of, labels_until
    )
    row_signals = {name: signal.as_dict() for name, signal in evaluated.items()}
    harmless = drift_state == "drifted" and not retraining.harm_reason(spec, row_signals)
    drift = signal_evaluation.drift_signals(drift_state, summary.reason, columns, harmless)
    statuses = [c.status for c in columns]
    reasons = [summary.reason, persistence]
    verdict = drift_state
    if drift_state == "ok" and (not_ok := drift_verdict.reason_not_ok(evaluated)):
        verdict, reasons = "undetermined", [not_ok, *reasons]
    result = results.undetermined_result(start, as_of, "; ".join(filter(None, reasons)))
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
            "performance": results.performance_result(measured, evaluated["performance"]),
            "changed": _changed(spec, champion),
            "new_rows": signal_evaluation.new_row_share(spec, champion, as_of),
            "signals": {name: signal.as_dict() for name, signal in drift.items()} | row_signals,
            "trial": trial_evaluation.evaluate_trial(spec, champion, as_of, labels_until),
        }
    )
    return result


def _champion_signal(champion: registry.ModelVersion | None, external_change: str) -> Signal:
    """Whether the champion was changed only by promotion and rollback."""
    if external_change:
        return Signal("bad", external_change)
    if champion is None:
        return Signal("undetermined", "there is no champion yet")
    return Signal("ok", f"version {champion.version} is the champion in MLflow and in the ledger")


def _changed(spec: ModelSpec, champion: registry.ModelVersion) -> list[str]:
    """Which of ``spec`` and ``code`` differ from those that the champion was trained with."""
    present = {"spec": ("spec_digest", spec.digest), "code": ("code_version", runtime.code_version())}
    return [name for name, (tag, value) in present.items() if champion.tags.get(tag, value) != value]


def _write_report(spec: ModelSpec, evaluation: _Evaluation) -> None:
    """Write the report as HTML and JSON, and add its URI to the result."""
    result, drift_report = evaluation.result, evaluation.drift_report
    path = f"{settings().lake}/reports/{spec.name}/monitor/{result['as_of']}"
    title = f"{spec.name}, {spec.monitoring.window} to {result['as_of']}"
    result["report"] = f"{path}.html"

    def page() -> str:
        trial_summary = trials.summarise(result["trial"], spec.metric) if result["trial"] else ""
        history = results.window_history(spec, result["as_of"], MAX_WINDOWS)
        pictures = report.Pictures(history, spec.monitoring.drift_share, evaluation.charts)
        return report.render_page(title, result, evaluation.columns, drift_report, trial_summary, pictures)

    def content() -> str:
        sections = {
            "result": result,
            "columns": [asdict(column) for column in evaluation.columns],
            "omitted_columns": drift_report.omitted_columns,
            "evidently": drift_report.results,
        }
        return json.dumps(sections, indent=1, default=str)

    pages.write(title, [f"{path}.html"], lambda: [page()])
    pages.write(title, [f"{path}.json"], lambda: [content()])
    if evaluation.histograms:
        file = feature_histograms.uri(spec.name, result["as_of"])
        pages.write(title, [file], lambda: [json.dumps(evaluation.histograms)])
