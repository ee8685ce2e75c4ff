"""What a step did, in a few plain lines that end its log: how much, what was decided and why, where to look.

The command line, tasks of Airflow and pods all log these lines, by `log_summary`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast, get_args

from perennial.core import unexpected_errors
from perennial.core.settings import settings
from perennial.spec.sections import Step
from perennial.storage import delta_tables, manifests

if TYPE_CHECKING:
    from perennial.governance.reproduction import ReproductionResult
    from perennial.lifecycle.promotion import PromotionResult
    from perennial.lifecycle.retraining import RetrainingDecision
    from perennial.monitoring.results import MonitoringResult
    from perennial.spec.model_spec import ModelSpec
    from perennial.steps.conclude import TrialConclusion
    from perennial.steps.data import DataResult
    from perennial.steps.erase import ErasedRows
    from perennial.steps.publish_predictions import PublishedPredictions
    from perennial.steps.rollback import RollbackStepResult
    from perennial.steps.score import ScoreResult
    from perennial.training.runs.train_result import TrainResult

log = logging.getLogger("perennial")
#: Partitions that a line lists by date.
MAX_LISTED = 10


@dataclass(frozen=True)
class Summary:
    """What a step did.

    Attributes:
        lines: sentences: what was done, how much, what was decided and why.
        report: URI of the page that the step wrote, or of the folder of a range's pages; empty if there is none.
        mlflow_run: id of the run in MLflow; empty if there is none.
        manifest: URI of the manifest that the step wrote, or of the folder of a range's; empty if it writes none.
    """

    lines: tuple[str, ...]
    report: str = ""
    mlflow_run: str = ""
    manifest: str = ""

    def text(self, report_address: Callable[[str], str] = str) -> list[str]:
        """All lines, with the addresses last.

        Args:
            report_address: the address of a report for people, by its URI; by default the URI itself.
        """
        lines = [line for line in self.lines if line]
        if self.report:
            lines.append(f"Report: {report_address(self.report) or self.report}")
        if self.mlflow_run:
            lines.append(f"MLflow run: {settings().mlflow_run_page(self.mlflow_run)}")
        if self.manifest:
            lines.append(f"Manifest: {self.manifest}")
        return lines


def summarise(step: str, spec: ModelSpec, result: Mapping[str, Any]) -> Summary:
    """Say what a step did.

    Args:
        step: name of the step.
        spec: the model.
        result: what the step returned.
    """
    summary = _SUMMARIES[step](spec.name, result)
    if step not in get_args(Step):
        return summary
    return replace(summary, manifest=_manifest(spec.name, step, result))


def _manifest(model: str, step: str, result: Mapping[str, Any]) -> str:
    """URI of the manifest of a heavy step, or of the folder of those of a range; empty if nothing was done."""
    keys = result["partitions"] if "partitions" in result else [result["as_of"]]
    if len(keys) <= 1:
        return manifests.uri(model, step, keys[0]) if keys else ""
    return manifests.uri(model, step, keys[0]).rpartition("/")[0]


def log_summary(
    step: str, spec: ModelSpec, result: Mapping[str, Any], report_address: Callable[[str], str] = str
) -> None:
    """Log what a step did, a line for each sentence; its work is done, so that nothing here fails it.

    Args:
        step: name of the step.
        spec: the model.
        result: what the step returned.
        report_address: as of `Summary.text`.
    """
    try:
        lines = summarise(step, spec, result).text(report_address)
    except Exception as error:  # a result that another version stored may have other keys
        log.warning("What the step %s did cannot be said in words: %s", step, unexpected_errors.origin(error))
        return
    for line in lines:
        log.info("%s", line)


def _data(model: str, result: DataResult) -> Summary:
    days, done = _dates(result["partitions"]), result["status"]
    first = {
        "published": f"Published {days} of {model}.",
        "unchanged": f"Nothing to do: {days} of {model} published from the same data before.",
        "not begun": f"Nothing was published: the partition of {model} has not landed, and none did before.",
    }[done]
    rows = ""
    if result["rows_in"]:
        share = result["quarantined"] / result["rows_in"]
        rows = (
            f"Rows: {result['rows_in']:,} read, {result['rows_out']:,} published, {result['quarantined']:,} "
            f"quarantined ({share:.2%}); table version {result['version']}."
        )
    labels = ""
    if result["labels"] or result["labels_quarantined"]:
        labels = (
            f"Labels: {result['labels']:,} published, {result['labels_quarantined']:,} quarantined; table version "
            f"{result['labels_version']}."
        )
    quarantine = ""
    if result["quarantined"]:
        quarantine = f"Quarantined rows, each with its reasons: {delta_tables.table_uri('quarantine', model)}"
    late = _late("published", result.get("late")), _late("labels published", result.get("late_labels"))
    docs = result["docs"]
    report = docs[0].rpartition("/")[0] if len(docs) > 1 else "".join(docs)
    return Summary((first, rows, labels, *late, quarantine), report)


def _train(model: str, result: TrainResult) -> Summary:
    version, rows, gate = result["version"], result["rows"], result["gate"]
    how = f"{result['algorithm']}, {_count(result['rounds'], 'round')}, {_count(result['trials'], 'search trial')}"
    how += f" (ended by training.search.{end})" if (end := result.get("search_end")) else ""
    first = f"Trained version {version} of {model} as of {result['as_of']}: {how}, on {result['device']}."
    if result["status"] == "unchanged":
        first = f"Nothing to do: version {version} of {model} was trained as of {result['as_of']} from the same data."
    amount = (
        f"Rows: {rows['fit']:,} to fit, {rows['valid']:,} for early stopping, {rows['holdout']:,} held out "
        f"(window {result['window']}; table versions {_versions(result)})."
    )
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in sorted(result["metrics"].items()))
    worse = [f"Worse than the champion for {sentence}." for sentence in result.get("worse_slices", [])]
    verdict = f"Gate: version {version} {'passed' if gate['passed'] else 'was rejected'}."
    reasons = [f"  {reason}" for reason in gate["reasons"]]
    refit = f"{sentence}." if (sentence := result.get("refit")) else ""
    useless = (
        f"Measured as of {known['as_of']}: {known['sentence']}."
        if ((known := result.get("usefulness")) and known["sentence"])
        else ""
    )
    requested = f"Requested because: {result['reason']}." if result["reason"] else ""
    return Summary(
        (
            first,
            requested,
            amount,
            f"On the held-out rows: {metrics}.",
            *worse,
            verdict,
            *reasons,
            refit,
            useless,
        ),
        result.get("report", ""),
        result["run_id"],
    )


def _versions(result: TrainResult) -> str:
    """The versions of the tables that a training read."""
    dataset = result["dataset_version"]
    versions = {"published": dataset["published"], "labels": dataset["labels"], **dataset["references"]}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)


def _promote(model: str, result: PromotionResult) -> Summary:
    version, previous = result["version"], result["previous"]
    if result["promoted"]:
        replaced = f" in place of version {previous}" if previous not in (None, version) else ""
        first = f"Version {version} of {model} is champion{replaced}."
    else:
        remains = f"version {previous} stays champion" if previous else "there is still no champion"
        first = f"Version {version} of {model} was not promoted: {remains}."
    return Summary((first, _reason(result["reason"])))


def _score(model: str, result: ScoreResult) -> Summary:
    version = result["model_version"]
    if version is None:
        return Summary((f"Nothing was scored: {model} has no champion yet.",))
    first = f"Scored {_dates(result['partitions'])} of {model} with version {version}, the champion."
    if result["status"] == "unchanged":
        first = f"Nothing to do: version {version} of {model} scored the same rows before."
    trial = (
        f"Version {result['challenger']}, on trial, scored its share of the rows."
        if "challenger" in result
        else ""
    )
    rows = f"Rows: {result['rows_in']:,} published, {result['rows_out']:,} predictions."
    missing = result["missing"]
    not_published = f"Not published, and so not scored: {_listed(missing)}." if missing else ""
    return Summary((first, trial, rows, not_published, _late("scored", result.get("late"))))


def _publish_predictions(model: str, result: PublishedPredictions) -> Summary:
    days, table = _dates(result["partitions"]), result["table"]
    first = f"Wrote the predictions of {days} of {model} to the table {table}."
    if result["status"] == "unchanged":
        first = f"Nothing to do: the table {table} has the same predictions of {days} of {model}."
    return Summary((first, f"Rows: {result['rows']:,} predictions.", _late("written", result["late"])))


def _monitor(model: str, result: MonitoringResult) -> Summary:
    version, performance = result["model_version"], result["performance"]
    champion = f"version {version}" if version else "no champion"
    first = f"Monitored {model} from {result['start']} to {result['as_of']}: {champion}."
    if result["status"] == "unchanged":
        first = f"Nothing to do: {model} was monitored as of {result['as_of']} from the same data before."
    measured = f"Performance: {performance['verdict']}: {performance['reason']}."
    drifted = f"Drifted columns: {_listed(result['drifted'])}." if result["drifted"] else ""
    return Summary(
        (first, f"Verdict: {result['verdict']}: {result['reason']}.", measured, *_signals(result), drifted),
        result["report"],
    )


def _signals(result: MonitoringResult) -> list[str]:
    """How many signals are in each state, and the reasons of those that are not fine."""
    states: dict[str, list[str]] = {}
    for name, signal in sorted(result["signals"].items()):
        states.setdefault(signal["state"], []).append(name)
    order = [state for state in ("bad", "suspected", "undetermined", "ok") if state in states]
    if not order:
        return []
    counts = ", ".join(f"{len(states[state])} {state}" for state in order)
    return [
        f"Signals: {counts}.",
        *(
            f"  {name} is {state}: {result['signals'][name]['reason']}"
            for state in order
            if state != "ok"
            for name in states[state]
        ),
    ]


def _decide(model: str, result: RetrainingDecision) -> Summary:
    decision = "no retraining"
    if result["proposed"]:
        decision = "a retraining is proposed; a person has to approve it"
    elif result["retrain"]:
        decision = "a retraining is requested"
    triggers = f"Triggers: {', '.join(result['triggers'])}." if result["triggers"] else ""
    first = f"Decided on {model} as of {result['as_of']}: {decision} (by {result['decided_by']})."
    return Summary((first, _reason(result["reason"]), triggers), result["report"] or "")


def _conclude(model: str, result: TrialConclusion | PromotionResult) -> Summary:
    if "version" in result:
        return _promote(model, cast("PromotionResult", result))
    return Summary((f"The champion of {model} stays as it is.", _reason(result["reason"])))


def _rollback(model: str, result: RollbackStepResult) -> Summary:
    previous = f" in place of version {result['previous']}" if result["previous"] else ""
    seconds = f", after {result['seconds']:.1f} s" if "seconds" in result else ""
    first = f"Version {result['version']} of {model} is champion again{previous}{seconds}."
    ranges = result.get("scored") or []
    if not ranges:
        return Summary((first,))
    commands = [
        f"  perennial run score --model {model} --start {start} --end {end or start}"
        for start, _, end in (span.partition("..") for span in ranges)
    ]
    scored = (
        f"Version {result['previous']} scored {_listed(ranges)}. To score them again, unless the run does so:"
    )
    return Summary((first, scored, *commands))


def _reproduce(model: str, result: ReproductionResult) -> Summary:
    from perennial.governance import reproduction  # not at the top: it imports what trains

    sentence = reproduction.summarise(result)
    metrics = [f"  {n}: {then:.6g} then, {again:.6g} now" for n, (then, again) in result["metrics"].items()]
    return Summary((f"Of {model}: {sentence}.", *metrics, *(f"  {text}" for text in result["differences"])))


def _erase(model: str, result: ErasedRows) -> Summary:
    removed = ", ".join(f"{n:,} of {table}" for table, n in result["rows"].items() if n) or "none"
    lines = [
        f"Rows removed of {model}: {removed}. Files of older table versions deleted: {result['files']:,}."
    ]
    if result["published_again"]:
        lines.append(f"Replaced in the database: predictions of {_dates(result['published_again'])}.")
    if result["versions"]:
        also = ", the champion among them" if result["champion"] else ""
        lines.append(
            f"Train again, then delete in MLflow: versions {_listed(result['versions'])}, which were trained or "
            f"evaluated on these partitions{also}."
        )
    lines += [
        f"Train {other} again, too: its versions {_listed(versions)} learned features of such rows."
        for other, versions in result["joining"].items()
    ]
    if result["landed"]:
        lines.append(
            f"Not touched: these landed files may still hold such rows, which are not published again: "
            f"{_listed(result['landed'])}."
        )
    if result["hidden"]:
        lines.append(
            f"{_count(result['hidden'], 'record')} of quarantine may be of the keys: a column of them is hidden there. "
            "With --hidden (hidden in the form) all of these are removed."
        )
    if result["references"]:
        lines.append(f"Land these reference tables without such rows: {_listed(result['references'])}.")
    if result["other_models"]:
        others = _listed(result["other_models"])
        lines.append(
            f"Erase there, too, since feature tables read their rows or they have the same columns: {others}."
        )
    if result["remaining"]:
        lines.append(f"Not searched, and may have such values: {_listed(result['remaining'])}.")
    return Summary(tuple(lines))


def _reason(text: str) -> str:
    return f"Reason: {text.rstrip('.')}."


def _late(what: str, days: Iterable[str] | None) -> str:
    """A line on partitions that were overdue and done in addition."""
    listed = list(days or ())
    return f"Overdue, and {what} in addition: {_listed(listed)}." if listed else ""


def _dates(days: Sequence[str]) -> str:
    """One date, or how many and from which to which."""
    if len(days) <= 1:
        return days[0] if days else "no partition"
    return f"{len(days):,} partitions ({days[0]} to {days[-1]})"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_LISTED:,} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


_SUMMARIES: dict[str, Callable[[str, Any], Summary]] = {
    "data": _data,
    "train": _train,
    "promote": _promote,
    "score": _score,
    "monitor": _monitor,
    "decide": _decide,
    "conclude": _conclude,
    "rollback": _rollback,
    "erase": _erase,
    "publish_predictions": _publish_predictions,
    "reproduce": _reproduce,
}
