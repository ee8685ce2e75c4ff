"""The page of one version: what it was made from, how good it is, who decided on it, and what it has scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from perennial.charts.markup import Markup
from perennial.console import overview
from perennial.console.host import Link
from perennial.console.views import _held_out
from perennial.console.views._held_out import fairness_figures as fairness_figures
from perennial.console.views._held_out import slice_figures as slice_figures
from perennial.console.views.parts import Parts
from perennial.core.settings import settings
from perennial.governance import model_explanation
from perennial.lifecycle import champion
from perennial.modeling import training_records
from perennial.modeling.evaluation_charts import staleness_chart
from perennial.modeling.performance import Estimate, Performance
from perennial.modeling.training_records import TrainingRecord
from perennial.spec.alerts import signal_title
from perennial.spec.constraints import direction, metric_in_words
from perennial.status import history as history_module
from perennial.status import rescoring
from perennial.status.history import Entry, History
from perennial.storage import delta_tables, ledger, manifests
from perennial.storage.ledger import LedgerKind, LedgerRecord
from perennial.storage.manifests import Manifest
from perennial.training.gate.fairness import Fairness

#: Signals of monitoring that compare groups of rows.
_GROUP_SIGNALS = ("slices", "fairness")


@dataclass(frozen=True)
class Fact:
    """A line of a list of facts.

    Attributes:
        name: what it is.
        value: for people.
        url: of a page about it; empty if there is none.
    """

    name: str
    value: str
    url: str = ""


@dataclass(frozen=True)
class Metric:
    """A metric of the held-out rows.

    Attributes:
        name: of the metric.
        title: as people write it.
        better: ``higher`` or ``lower``.
        value: on the held-out rows.
        low: lower end of its confidence interval; None if training stored none.
        high: upper end.
        monitored: on the labelled rows of the latest window that monitored the version; None if there is none.
    """

    name: str
    title: str
    better: str
    value: float
    low: float | None = None
    high: float | None = None
    monitored: float | None = None


@dataclass(frozen=True)
class GateComparison:
    """A comparison of the gate, on the same held-out rows.

    Attributes:
        other: what it was compared with.
        loss: of the version.
        other_loss: of the other.
        improvement: as a share of the other's loss.
        low: lower end of the improvement's confidence interval.
        high: upper end.
        rows: number of rows.
    """

    other: str
    loss: float
    other_loss: float
    improvement: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True)
class GroupSignal:
    """What monitoring says of groups of rows.

    Attributes:
        title: of the signal.
        state: of the signal.
        reason: in words, with the worst group.
        as_of: last partition of the window.
    """

    title: str
    state: str
    reason: str
    as_of: str


@dataclass(frozen=True)
class Term:
    """A time in which the version was champion.

    Attributes:
        since: when it became champion (UTC).
        until: when another one did; empty if it still is.
        change: how: ``promoted``, ``rolled back``, ``followed`` or ``restored``.
        actor: who or what decided.
        reason: why.
        successor: version of the other one.
    """

    since: str
    until: str
    change: str
    actor: str
    reason: str
    successor: str = ""


@dataclass(frozen=True)
class VersionPage:
    """The page.

    Attributes:
        model: name of the model.
        version: its number.
        as_of: partition as of which it was trained.
        decision: of the gate.
        reason: of the decision.
        recorded_at: when it was recorded (UTC).
        is_champion: whether it is the champion.
        others: the other versions, the latest first.
        lineage: data, code, spec and run that it was made from.
        files: SHA-256 of each of its files, by name.
        metrics: of the held-out rows.
        coverage: on how many of how many rows they rest; empty if that is not known.
        comparisons: of the gate.
        criteria: of the gate: whether each is met, and what was measured.
        candidates: held-out loss of each candidate, by what they differ in and name; the lowest won.
        staleness: chart of the loss by age of the model; None if it was not measured.
        held_out: the metrics with intervals, of its champion too, and by slice; None if training stored none.
        fairness: gaps between the groups of ``gate.fairness``; None if training stored none.
        groups: what monitoring says of groups of rows.
        terms: times as champion, in order.
        decisions: records of the ledger that concern it, in order.
        scored: ranges of partitions whose scores are its own, with their number.
        links: to its run, its documents, its page in MLflow, and its reports.
        notes: what is not known, and why.
        problems: parts that cannot be shown, with cause and remedy.
    """

    model: str
    version: str
    as_of: str
    decision: str
    reason: str
    recorded_at: str
    is_champion: bool
    others: list[str]
    lineage: list[Fact] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    coverage: str = ""
    comparisons: list[GateComparison] = field(default_factory=list)
    criteria: list[tuple[bool, str]] = field(default_factory=list)
    candidates: dict[str, dict[str, float]] = field(default_factory=dict)
    staleness: Markup | None = None
    held_out: Performance | None = None
    fairness: Fairness | None = None
    groups: list[GroupSignal] = field(default_factory=list)
    terms: list[Term] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    scored: list[tuple[str, int]] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[tuple[str, str, str]] = field(default_factory=list)


def compose(model: str, version: str, base: str, *, has_runs: bool) -> VersionPage | None:
    """Read everything about a version; None if the ledger has no training of it.

    Args:
        model: name of the model.
        version: its number.
        base: path under which the console is mounted.
        has_runs: whether the console has pages of Airflow's runs.

    Raises:
        StorageError: the ledger cannot be read.
    """
    records = ledger.records(model)
    trainings = [r for r in records if r["kind"] == LedgerKind.TRAINING and r["model_version"]]
    training = next((r for r in reversed(trainings) if r["model_version"] == version), None)
    if training is None:
        return None
    parts = Parts()
    recorded = TrainingRecord.parse(training)
    manifest = parts.read("the manifest of the training", lambda: _manifest(model, training), None)
    history = parts.read("manifests", lambda: history_module.load(model)[0], History({}))
    monitored = [(key, e) for key, e in history.of("monitor").items() if e.version == version]
    result: Mapping[str, Any] = manifest.result if manifest else {}
    gate: Mapping[str, Any] = result.get("gate") or {}
    changes = champion.changes(records)
    estimates = _held_out.read(parts, model, recorded)
    return VersionPage(
        model=model,
        version=version,
        as_of=training["partition"],
        decision=training["decision"],
        reason=training["reason"],
        recorded_at=training["recorded_at"],
        is_champion=bool(changes) and changes[-1]["model_version"] == version,
        others=[n for n in dict.fromkeys(r["model_version"] for r in reversed(trainings)) if n != version],
        lineage=list(_lineage(model, training, recorded, manifest, base if has_runs else None)),
        files=recorded.digests,
        metrics=_metrics(training, estimates, monitored),
        coverage=_coverage(gate.get("coverage") or {}),
        comparisons=list(_comparisons(gate)),
        criteria=_criteria(gate.get("reasons") or training["reason"].split("; ")),
        candidates={k: v for k, v in (result.get("candidates") or {}).items() if v},
        staleness=staleness_chart(curve).figure() if (curve := result.get("staleness")) else None,
        held_out=estimates,
        fairness=_held_out.read_fairness(parts, model, recorded),
        groups=_groups(monitored),
        terms=list(_terms(changes, version)),
        decisions=_decisions(records, training),
        scored=parts.read("scores", lambda: _scored(model, version), []),
        links=_links(training, recorded, manifest, monitored, base),
        notes=_notes(training, manifest),
        problems=parts.problems,
    )


def _manifest(model: str, training: LedgerRecord) -> Manifest | None:
    """The manifest of the training; None if a later one as of the same partition replaced it."""
    manifest = manifests.read(model, "train", training["partition"])
    if manifest is None or manifest.model_version != training["model_version"]:
        return None
    return manifest if manifest.result.get("run_id") == training["evidence"].get("run_id") else None


def _notes(training: LedgerRecord, manifest: Manifest | None) -> list[str]:
    if manifest is not None:
        return []
    return [
        f"There is no manifest of this training any more: another one as of {training['partition']} replaced it, or it "
        "was removed. The ledger's record is shown; comparisons and numbers of rows are in evaluation.json of the run "
        "in MLflow."
    ]


def _lineage(
    model: str,
    training: LedgerRecord,
    recorded: TrainingRecord,
    manifest: Manifest | None,
    base_of_runs: str | None,
) -> Iterator[Fact]:
    """What the version was made from; without what is not known. Runs are links where they have a page."""
    evidence, tags = training["evidence"], recorded.tags
    request = evidence.get("request") or {}
    result: Mapping[str, Any] = manifest.result if manifest else {}
    rows: Mapping[str, int] = result.get("rows") or {}
    facts = {
        "Trained on": tags.get("trained_range", "").replace("..", " to "),
        "Evaluated on": tags.get("holdout_range", "").replace("..", " to "),
        "Refit": str(result.get("refit") or tags.get("refit_range", "")).replace("..", " to "),
        "Window": evidence.get("window", ""),
        "Change that it responds to": result.get("since", ""),
        "Rows": ", ".join(f"{count:,} {_ROWS[name]}" for name, count in rows.items() if name in _ROWS),
        **_tables(model, tags, result),
        "Requested because": request.get("reason") or tags.get("reason", ""),
        "Requested by": request.get("actor", ""),
        "Compared with champion": str(evidence.get("champion") or ""),
        "Algorithm": _algorithm(tags, result),
        "Device": tags.get("device", ""),
        "Spec": tags.get("spec_digest", ""),
        "Code": tags.get("code_version", ""),
        "MLflow run": recorded.run_id,
        "Airflow run": manifest.run_id if manifest else "",
        "Took": f"{manifest.duration:,.0f} s, {manifest.memory_mb:,} MiB" if manifest else "",
    }
    urls = {"MLflow run": settings().mlflow_run_page(recorded.run_id)} if recorded.run_id else {}
    if base_of_runs is not None and manifest and manifest.run_id:
        urls["Airflow run"] = f"{base_of_runs}/dags/{model}.train/runs/{quote(manifest.run_id, safe='')}"
    yield from (Fact(name, str(value), urls.get(name, "")) for name, value in facts.items() if value)


_ROWS = {"fit": "to fit on", "valid": "for early stopping", "holdout": "held out"}


def _tables(model: str, tags: Mapping[str, str], result: Mapping[str, Any]) -> dict[str, str]:
    """The table versions that were read, by table."""
    versions: Mapping[str, Any] = result.get("dataset_version") or {}
    if not versions:
        return {"Table versions": tags.get("dataset_version", "")}
    tables = {
        f"Table {kind}": f"version {versions[kind]} of {delta_tables.table_uri(kind, model)}"
        for kind in ("published", "labels")
        if versions.get(kind) is not None
    }
    references: Mapping[str, Any] = versions.get("references") or {}
    return tables | {f"Reference table {name}": f"version {number}" for name, number in references.items()}


def _algorithm(tags: Mapping[str, str], result: Mapping[str, Any]) -> str:
    parts = [
        tags.get("algorithm", ""),
        f"{result['rounds']} rounds" if result.get("rounds") else "",
        f"{result['trials']} trials of the search" if result.get("trials") else "",
        f"{result['workers']} workers" if result.get("workers", 1) > 1 else "",
        "matrix on disk" if result.get("external_memory") else "",
    ]
    return ", ".join(filter(None, parts))


def _metrics(
    training: LedgerRecord, estimates: Performance | None, monitored: Sequence[tuple[str, Entry]]
) -> list[Metric]:
    """The metrics of the held-out rows; the gate's one also of the latest window that has it."""
    intervals: Mapping[str, Estimate] = estimates.metrics if estimates else {}
    details = [e.details for _, e in monitored if e.details.get("performance") is not None]
    latest: Mapping[str, Any] = details[-1] if details else {}
    return [
        Metric(
            name,
            metric_in_words(name),
            direction(name),
            value,
            intervals[name].low if name in intervals else None,
            intervals[name].high if name in intervals else None,
            latest.get("performance") if name == latest.get("metric") else None,
        )
        for name, value in sorted((training["evidence"].get("metrics") or {}).items())
    ]


def _coverage(coverage: Mapping[str, Any]) -> str:
    """On how many of how many rows the metrics rest, in words."""
    if not coverage:
        return ""
    omitted = ", ".join(f"{n:,} {why}" for why, n in coverage.get("omitted", {}).items())
    wrong = ", ".join(f"{n:,} {why}" for why, n in coverage.get("counted_wrong", {}).items())
    text = f"{coverage['evaluated']:,} of {coverage['rows']:,} held-out rows"
    return (
        text + (f"; left out: {omitted}" if omitted else "") + (f"; count as wrong: {wrong}" if wrong else "")
    )


def _comparisons(gate: Mapping[str, Any]) -> Iterator[GateComparison]:
    against: dict[str, Mapping[str, Any]] = {}
    if compared := gate.get("against_champion"):
        against[f"champion, version {gate.get('champion')}"] = compared
    against |= {f"baseline: {name}": c for name, c in (gate.get("against_baselines") or {}).items()}
    for other, c in against.items():
        yield GateComparison(
            other, c["loss"], c["other"], c["improvement"], c["low"], c["high"], int(c["rows"])
        )


def _criteria(reasons: Sequence[str]) -> list[tuple[bool, str]]:
    """Whether each criterion is met, from the gate's sentences."""
    marked = [reason.partition(": ") for reason in reasons]
    return [
        (mark == "ok", text) if mark in ("ok", "FAILED") else (True, f"{mark}{colon}{text}")
        for mark, colon, text in marked
    ]


def _groups(monitored: Sequence[tuple[str, Entry]]) -> list[GroupSignal]:
    """The latest states of the signals of groups of rows."""
    latest: dict[str, GroupSignal] = {}
    for key, entry in monitored:
        for name in _GROUP_SIGNALS:
            if signal := (entry.details.get("signals") or {}).get(name):
                latest[name] = GroupSignal(
                    signal_title(name), signal.get("state") or "", signal.get("reason") or "", key
                )
    return list(latest.values())


def _terms(changes: Sequence[LedgerRecord], version: str) -> Iterator[Term]:
    for i, change in enumerate(changes):
        if change["model_version"] != version or (i and changes[i - 1]["model_version"] == version):
            continue
        following = next((c for c in changes[i + 1 :] if c["model_version"] != version), None)
        yield Term(
            change["recorded_at"],
            following["recorded_at"] if following else "",
            change["decision"],
            change["actor"],
            change["reason"],
            following["model_version"] if following else "",
        )


def _decisions(records: Sequence[LedgerRecord], training: LedgerRecord) -> list[dict[str, Any]]:
    """The records about the version, and those on the request of its training, with the answer of a person."""
    keys = ("sequence", "recorded_at", "partition", "kind", "decision", "actor", "reason")

    def concerns(record: LedgerRecord) -> bool:
        is_request = (
            record["kind"] == LedgerKind.RETRAINING
            and record["partition"] == training["partition"]
            and record["sequence"] < training["sequence"]
        )
        return is_request or record["model_version"] == training["model_version"]

    return [
        {key: record[key] for key in keys}  # type: ignore[literal-required]
        for record in filter(concerns, records)
    ]


def _scored(model: str, version: str) -> list[tuple[str, int]]:
    ranges = rescoring.ranges(overview.load_spec(model), version)
    return [(span.compact, len(span)) for span in reversed(ranges)]


def _links(
    training: LedgerRecord,
    recorded: TrainingRecord,
    manifest: Manifest | None,
    monitored: Sequence[tuple[str, Entry]],
    base: str,
) -> list[Link]:
    """Pages about the version. Their addresses are composed: nothing asks MLflow whether it has them."""
    model, version, where = training["model"], training["model_version"], settings()
    links = []
    if recorded.run_id:
        links.append(Link("MLflow run", where.mlflow_run_page(recorded.run_id)))
    documents = {
        training_records.CARD_FILE: ("Model card", "card"),
        model_explanation.ARTIFACT: ("What it does", "explanation"),
    }
    links += [
        Link(words, f"{base}/models/{model}/versions/{version}/{path}")
        for name, (words, path) in documents.items()
        if name in recorded.digests
    ]
    links.append(Link("Version in MLflow", f"{where.mlflow_ui}/#/models/{model}/versions/{version}"))
    reports = f"{base}/reports/{model}"
    if manifest is not None and manifest.result.get("report"):
        links.append(Link("Training report", f"{reports}/training/{training['partition']}.html"))
    reported = [key for key, entry in monitored if entry.details.get("report")]
    if reported:
        links.append(Link("Latest monitoring report", f"{reports}/monitor/{reported[-1]}.html"))
    return links


def numbers(model: str) -> list[str]:
    """The versions that the ledger has a training of, the latest first."""
    trained = ledger.records(model, LedgerKind.TRAINING)
    return list(dict.fromkeys(r["model_version"] for r in reversed(trained) if r["model_version"]))


def champion_of(model: str) -> str:
    """The champion according to the ledger; empty before the first promotion."""
    changes = champion.changes(ledger.records(model))
    return changes[-1]["model_version"] if changes else ""
