"""The monitor step: drift of features and predictions, performance on matured labels, one verdict, one report."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from perennial.core import dates, runtime
from perennial.core.settings import settings
from perennial.modeling import registry
from perennial.monitoring import results
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, manifests, object_store
from perennial.storage.manifests import Manifest

if TYPE_CHECKING:
    import pyarrow as pa

    from perennial.modeling.trained_model import TrainedModel
    from perennial.monitoring import drift_verdict
    from perennial.monitoring.baseline import MonitoringBaseline
    from perennial.monitoring.drift_verdict import ColumnDrift
    from perennial.monitoring.histograms import BinCounts, ReferenceColumn
    from perennial.monitoring.signals import Signal
    from perennial.spec.constraints import SignalState

_Result = dict[str, Any]
#: Drifted columns that the result names at most; the table has them all.
NAMED = 20


def monitor(spec: ModelSpec, *, as_of: str, force: bool = False, run_id: str = "") -> _Result:
    """Judge the champion on the window of partitions that ends with ``as_of``.

    The columns' findings and the verdict replace the partition ``as_of`` of the lake's table ``monitoring``; the report
    is kept as HTML and JSON. A verdict that cannot be computed is ``undetermined``.

    Returns:
        verdict (``ok``, ``suspected``, ``drifted``, ``undetermined``), reason, drift_share, judged_share, drifted
        (columns), columns (how many of each status), performance, model_version, champion_as_of, report (URI), status.

    Raises:
        RegistryError: MLflow cannot be reached. ArtifactError: what training left for monitoring is damaged.
    """
    started = time.monotonic()
    dates.parse_date(as_of, "as_of")
    start = dates.add_days(as_of, 1 - spec.monitoring.window_days)
    champion = registry.champion(spec)
    inputs = _inputs(spec, champion, start, as_of)
    done = None if force else manifests.find_completed(spec.name, "monitor", as_of, inputs)
    if done:
        return done.result | {"status": "unchanged"}
    if champion is None:
        result = _blank(start, as_of) | {"reason": "there is no champion yet: train and promote one first"}
        findings: list[ColumnDrift] = []
        report: _Result = {}
        page = ""
        left_out: dict[str, str] = {}
    else:
        result, findings, page, report, left_out = _judge(spec, champion, start, as_of)
    result |= _report(spec, result, findings, page, report, left_out)
    version = delta_tables.replace(
        delta_tables.table_uri("monitoring", spec.name),
        results.to_table(as_of, result, findings),
        as_of,
    )
    rows = len(findings) + len(result["signals"]) + 2
    manifests.write(
        Manifest(
            spec.name,
            "monitor",
            as_of,
            inputs,
            result,
            outputs={"monitoring": version, "report": result["report"]},
            rows_in=rows,
            rows_out=rows,
            model_version=result["model_version"],
            run_id=run_id,
        ),
        started,
    )
    return result


def _inputs(spec: ModelSpec, champion: registry.ModelVersion | None, start: str, as_of: str) -> _Result:
    from perennial.lifecycle import trials
    from perennial.monitoring import retraining_gain
    from perennial.monitoring.performance import last_labelled_date

    published = delta_tables.table_uri("published", spec.name)
    first = dates.add_days(
        start, -retraining_gain.LOOKBACK_NIGHTS
    )  # a correction learns from nights before the window, too
    found = {
        "champion": champion.version if champion else None,
        "digest": champion.digest if champion else None,
        "spec": spec.digest,
        "rows": delta_tables.fingerprint(published, first, as_of),
        "predictions": delta_tables.fingerprint(
            delta_tables.table_uri("predictions", spec.name), start, as_of
        ),
        "served": delta_tables.fingerprint(delta_tables.table_uri("served", spec.name), start, as_of),
        "shadow": (trials.active_trial(spec) or {}).get("model_version"),
        "earlier": [list(e) for e in results.previous_verdicts(spec, champion, as_of)],
    }
    if spec.label.source is not None:
        found["labels"] = delta_tables.fingerprint(
            delta_tables.table_uri("labels", spec.name), first, last_labelled_date(spec, as_of)
        )
    if spec.monitoring.reference != "training":
        found["reference"] = delta_tables.fingerprint(published, _earlier(spec, start), _earlier(spec, as_of))
    return found


def _blank(start: str, as_of: str) -> _Result:
    return {
        "as_of": as_of,
        "start": start,
        "verdict": "undetermined",
        "reason": "",
        "drift_share": None,
        "judged_share": 0.0,
        "drifted": [],
        "columns": {},
        "model_version": None,
        "champion_as_of": None,
        "suspicious": None,
        "performance": {"verdict": "undetermined", "reason": "there is nothing to measure", "degraded": None},
        "signals": {},
        "shadow": None,
        "status": "monitored",
    }


def _judge(
    spec: ModelSpec, champion: registry.ModelVersion, start: str, as_of: str
) -> tuple[_Result, list[ColumnDrift], str, _Result, dict[str, str]]:
    from perennial.monitoring import baseline, drift_verdict, histograms, report, window_counts

    model = registry.load(champion)
    _, reference = histograms.read_reference(registry.load_json_artifact(champion, "reference.json"))
    n = spec.monitoring.report_rows
    features, seen = window_counts.count_features(registry.spec(champion), reference, start, as_of, n)
    predictions, said = window_counts.count_predictions(spec, reference, champion.version, start, as_of, n)
    compared = _compared(spec, champion, reference, start, as_of)
    findings = drift_verdict.compare_columns(
        compared,
        features,
        predictions,
        registry.load_json_artifact(champion, "importance.json"),
        spec.monitoring,
    )
    watched = baseline.load_baseline(champion, spec)
    findings = [_weighed(f, reference, features, watched) for f in findings]
    # Evidently draws in Python while the signals are counted by libraries that do not hold its lock.
    with ThreadPoolExecutor(1, thread_name_prefix="report") as pool:
        drawn = pool.submit(
            report.evidently_drift_report,
            [f for f in findings if f.column not in spec.data.personal],
            _sample(champion),
            seen | said,
            [c for c, s in reference.items() if s.kind == "categorical"],
            spec.monitoring.drift_share,
        )
        result = _found(spec, champion, model, watched, findings, start, as_of)
        return result, findings, *drawn.result()


def _found(
    spec: ModelSpec,
    champion: registry.ModelVersion,
    model: TrainedModel,
    watched: MonitoringBaseline,
    findings: Sequence[ColumnDrift],
    start: str,
    as_of: str,
) -> _Result:
    """The verdict, with the performance and every signal."""
    from perennial.lifecycle import retraining, shadow_test
    from perennial.monitoring import drift_verdict, performance, signal_evaluation

    summary = drift_verdict.summarize(findings, spec.monitoring)
    earlier = results.previous_verdicts(spec, champion, as_of)
    tier, said_of_tier = drift_verdict.verdict_with_persistence(
        summary.suspicious, [e[1] for e in earlier], spec.monitoring
    )
    measured = performance.measure(
        spec,
        start=start,
        as_of=as_of,
        model_version=champion.version,
        held_out=registry.load_json_artifact(champion, "evaluation.json").get("metrics", {}),
        classes=model.classes,
    )
    observed = signal_evaluation.evaluate_signals(
        spec, champion, model, watched, start, as_of, performance.last_labelled_date(spec, as_of)
    )
    lost = observed["performance"]
    degraded = None if lost.state == "undetermined" else lost.state == "bad"
    measured |= {"verdict": "dropped" if lost.state == "bad" else lost.state, "degraded": degraded}
    measured["reason"] = "; ".join(r for r in (measured["reason"], lost.reason) if r)
    told = {n: s.as_dict() for n, s in observed.items()}
    harmless = tier == "drifted" and not retraining.harm_reason(spec, told)
    told = {n: s.as_dict() for n, s in _drift(tier, summary.reason, findings, harmless).items()} | told
    drifted = [f.column for f in findings if f.status == "drifted"]
    return _blank(start, as_of) | {
        "verdict": tier,
        "reason": "; ".join(r for r in (summary.reason, said_of_tier) if r),
        "suspicious": summary.suspicious,
        "drift_share": _rounded(summary.drift_share),
        "judged_share": _rounded(summary.judged_share),
        "drifted": drifted[:NAMED],
        "columns": {s: sum(f.status == s for f in findings) for s in ("stable", "drifted", "undetermined")},
        "model_version": champion.version,
        "champion_as_of": champion.as_of or None,
        "performance": measured,
        "changed": _changed(spec, champion),
        "new_rows": signal_evaluation.new_row_share(spec, champion, as_of),
        "signals": told,
        "shadow": shadow_test.evaluate_trial(
            spec, champion, as_of, performance.last_labelled_date(spec, as_of)
        ),
    }


def _earlier(spec: ModelSpec, day: str) -> str:
    """The date that a date is compared with; 52 weeks make a year, so that weekdays fall on weekdays."""
    days = spec.monitoring.window_days if spec.monitoring.reference == "rolling" else 364
    return dates.add_days(day, -days)


def _compared(
    spec: ModelSpec,
    champion: registry.ModelVersion,
    reference: Mapping[str, ReferenceColumn],
    start: str,
    as_of: str,
) -> Mapping[str, ReferenceColumn]:
    """The columns with the counts of the window that the policy compares with, on the bins of training.

    Where nothing was published then, no column can be judged.
    """
    from dataclasses import replace

    from perennial.monitoring import window_counts
    from perennial.monitoring.histograms import PREDICTION

    if spec.monitoring.reference == "training":
        return reference
    first, last = _earlier(spec, start), _earlier(spec, as_of)
    then, _ = window_counts.count_features(registry.spec(champion), reference, first, last, 1)
    said, _ = window_counts.count_predictions(spec, reference, champion.version, first, last, 1)
    found = {}
    for column, shape in reference.items():
        counts = (said if column == PREDICTION else then).columns.get(column)
        found[column] = replace(shape, counts=counts or [0] * len(shape.counts))
    return found


def _weighed(
    finding: ColumnDrift,
    reference: Mapping[str, ReferenceColumn],
    window: BinCounts,
    watched: MonitoringBaseline,
) -> ColumnDrift:
    """The finding with what its drift does to the expected loss."""
    from dataclasses import replace

    from perennial.monitoring import drift_attribution

    now, losses = window.columns.get(finding.column), watched.bins.get(finding.column)
    if not now or not losses or not watched.loss:
        return finding
    rise = drift_attribution.loss_attributable_to_drift(reference[finding.column].counts, now, losses)
    return finding if rise is None else replace(finding, effect=round(rise / watched.loss, 6))


def _changed(spec: ModelSpec, champion: registry.ModelVersion) -> list[str]:
    """What of ``spec`` and ``code`` is another than the champion was trained by."""
    now = {"spec": ("spec_digest", spec.digest), "code": ("code_version", runtime.code_version())}
    return [what for what, (tag, value) in now.items() if champion.tags.get(tag, value) != value]


def _drift(
    tier: drift_verdict.Verdict, reason: str, findings: Sequence[ColumnDrift], harmless: bool
) -> dict[str, Signal]:
    """Drift of the features taken together, and of the predictions, as signals; bad only where it harms the model.

    Seasons come and go: a monitor that cries at each of them is switched off.
    """
    from perennial.monitoring.signals import Signal

    bad: SignalState = "suspected" if harmless else "bad"
    reason += "; no harm to the model is seen" if harmless else ""
    states: dict[str, SignalState] = {"drifted": bad, "stable": "ok", "ok": "ok", "suspected": "suspected"}
    found = {"features": Signal(states.get(tier, "undetermined"), reason)}
    for f in findings:
        if f.role == "prediction":
            said = f.reason or f"PSI {f.psi:.3g}, drifts above {f.threshold:.3g}"
            found["prediction"] = Signal(states.get(f.status, "undetermined"), said, f.psi, f.threshold)
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _sample(champion: registry.ModelVersion) -> dict[str, pa.ChunkedArray]:
    """The kept sample of training rows; nothing where it cannot be read: the verdict does not need it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from perennial.core.errors import ArtifactError

    try:
        table = pq.read_table(registry.artifact(champion.run_id, "reference.parquet"))
    except (ArtifactError, pa.ArrowException, OSError):
        return {}
    return dict(zip(table.column_names, table.columns, strict=True))


def _report(
    spec: ModelSpec,
    result: _Result,
    findings: Sequence[ColumnDrift],
    page: str,
    picture: _Result,
    left_out: dict[str, str],
) -> _Result:
    """Write the report's HTML and JSON; returns where it is."""
    from dataclasses import asdict

    from perennial.lifecycle import trials
    from perennial.monitoring import report

    place = f"{settings().lake}/reports/{spec.name}/monitor/{result['as_of']}"
    title = f"{spec.name}, {spec.monitoring.window_days} days to {result['as_of']}"
    trial = trials.summarise(result["shadow"], spec.metric) if result["shadow"] else ""
    object_store.write_text(
        f"{place}.html", report.render_page(title, result, findings, left_out, page, trial)
    )
    content = {
        "result": result,
        "findings": [asdict(f) for f in findings],
        "not_drawn": left_out,
        "evidently": picture,
    }
    object_store.write_text(f"{place}.json", json.dumps(content, indent=1, default=str))
    return {"report": f"{place}.html"}
