"""The page that the UI shows for each DAG, made from the model's spec."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perennial.core.partitions import FORMS
from perennial.spec.sources import QuerySource
from perennial_airflow.web import links

if TYPE_CHECKING:
    from perennial.spec.feature_table import FeatureTable
    from perennial.spec.model_spec import ModelSpec

SUMMARY = {
    "data": "Fetches, validates and publishes each partition; invalid rows go to quarantine.",
    "train": "Trains a challenger, compares it with the champion, and promotes it if it passes the gate.",
    "score": "Scores each published partition with the champion.",
    "monitor": "Evaluates all signals of the champion, and decides whether a retraining would pay.",
    "rollback": "Makes an earlier champion champion again. By hand only.",
}
FEATURES_SUMMARY = "Computes each partition of a feature table when its sources have published it."
_RANGE = (
    "**By hand.** Trigger with a partition key (`{form}`) for one partition; fill in *First* and *Last partition* "
    "for a range as one task; use *Backfill*, and leave both empty, for a range with one run per {unit}. All give the "
    "same content. A run with a partition key and with *First* or *Last partition* is refused."
)
_RERUN = (
    "Then clear the failed task: finished work is not repeated, and no reader sees half-written partitions."
)


def _range(spec: ModelSpec) -> str:
    return _RANGE.format(form=FORMS[spec.cadence.unit], unit=spec.cadence.unit)


def page(spec: ModelSpec, stage: str) -> str:
    """Markdown for ``<model>.<stage>``: what it does, reads and emits, who owns it, what to do when it fails."""
    parts = [
        f"### {spec.name} · {stage}",
        spec.description,
        _PAGES[stage](spec),
        _alerts(spec),
        f"**Model.** [State, charts, decisions and actions of {spec.name}]({links.model_url(spec.name)})",
        f"**Owner.** {spec.owner}",
    ]
    # a list, because Airflow's page sets paragraphs without a gap
    return "\n\n".join(parts).replace("\n\n**", "\n\n- **") + "\n"


def feature_table_page(table: FeatureTable, spec: ModelSpec) -> str:
    """Markdown for ``features.<table>``; ``spec`` is the model that is its first source."""
    sources = ", ".join(f"`data/{source.model}`" for source in table.sources)
    about = f"""{FEATURES_SUMMARY}

**Runs** for each partition as soon as it is published: {sources}.

**Reads** the published rows of {", ".join(source.model for source in table.sources)}, from {table.lookback} before the
partition to its end, and labels that had arrived before it began.

**Emits** the asset `features/{table.name}`. Nothing waits for it: training, scoring and monitoring of the models that
use the table compute what they need and what is missing, so this DAG may be paused.

{_range(spec)}

**When it fails.** The log ends with the cause and what to do; `perennial features check {table.name}` tries the SQL.
Partitions computed before stay. {_RERUN}"""
    parts = [
        f"### features · {table.name}",
        table.description,
        about,
        _alerts(spec),
        f"**Owner.** {table.owner}",
    ]
    return "\n\n".join(parts).replace("\n\n**", "\n\n- **") + "\n"


def _alerts(spec: ModelSpec) -> str:
    channels = ", ".join(f"{c.name} ({c.kind})" for c in spec.alerts.channels) or "none"
    return f"""**Alerts** about failures, late runs and recoveries go to the channels in `model.yaml` ({channels}), and
to `PERENNIAL_ALERT_URL` if it is set. `perennial incidents {spec.name}` lists open incidents."""


def _data(spec: ModelSpec) -> str:
    label, unit = spec.label, spec.cadence.unit
    delay = f", {label.arrives_after} later" if label.arrives_after else ""
    arrival = (
        "the query is ready, or has rows"
        if isinstance(spec.data.source, QuerySource)
        else "the file has landed"
    )
    waits = (
        f" `await_partition` waits until {arrival}, for at most {spec.data.arrival_hours:g} hours."
        if spec.data.arrival == "wait"
        else " A day without a file is published without rows."
        if spec.data.arrival == "optional"
        else ""
    )
    labels = f"labels from `{label.source}`{delay}" if label.source else "labels from a column of the rows"
    return f"""{SUMMARY["data"]}

**Runs** at `{spec.schedule.data}` {spec.cadence.zone}, for the {unit} before: it publishes that {unit}'s rows and the
labels that have arrived by then.{waits}

**Reads** rows from `{spec.data.source}`, {labels}, and the suite `expectations.json`.

**Emits** the asset `data/{spec.name}`, which starts `{spec.name}.score` for the same partition.

{_range(spec)}

**When it fails.** The log ends with the cause and what to do. A partition is missing or malformed: wait for
the feed, or have it delivered again. More than {spec.data.quarantine_limit:.0%} of the rows are in quarantine, or an
expectation about the table as a whole is not met: open the task's *Report*, and correct the feed, or the suite if
the suite is wrong. Earlier partitions stay published. {_RERUN}"""


def _train(spec: ModelSpec) -> str:
    gate, search = spec.gate, spec.training.search
    form = FORMS[spec.cadence.unit]
    held_out = spec.training.holdout.partitions(spec.cadence)
    method = f"a search of up to {search.trials} trials" if search.trials else "the parameters of the spec"
    hours = spec.retraining.quiet_hours
    quiet = (
        f"`await_quiet_hours`: a retraining that monitoring requested waits while it is between {hours.from_hour} and\n"
        f"{hours.to_hour} o'clock ({hours.timezone}), without holding a worker; one triggered by hand does not. "
        if hours
        else ""
    )
    return f"""{SUMMARY["train"]}

**Runs** when a retraining is requested (the asset `retraining/{spec.name}`, whose event carries the reason),
or by hand.

**Reads** published rows and labels up to its partition date, at a pinned version of the tables. The latest
{held_out} labelled partitions are held out; challenger and champion are compared on those same
rows.

**Does** {quiet}`train`: {method}, {spec.task}, device {spec.training.device}; registers the challenger with its
gate result. {_approval(spec)}`promote`: {_promotion(spec)}. Gate: `{spec.metric}` better than the champion's by more
than {gate.margin:.1%} at {gate.confidence:.0%} confidence. The ledger records the reason either way.

**Emits** the asset `model/{spec.name}` if the champion changed.

**By hand.** Trigger with a partition key (`{form}`) or fill in *As of*, and give the reason.

**When it fails.** The champion stays as it was. Too few labelled rows: publish more partitions first. The
registry cannot be reached: start MLflow. {_RERUN}"""


def _approval(spec: ModelSpec) -> str:
    """What the task `approve_promotion` does; nothing where promotions need no approval."""
    policy = spec.gate.approval
    if policy is None:
        return ""
    return (
        f"`approve_promotion`: {', '.join(policy.who)} approves or rejects, with a reason, on the page *Required "
        f"Actions*; without an answer within {policy.hours} hours the version is not promoted. "
    )


def _promotion(spec: ModelSpec) -> str:
    if spec.retraining.trial:
        return (
            f"starts the trial of a challenger that passed the gate, which `{spec.name}.monitor` concludes; the task\n"
            "is **skipped** then, as it is if the gate failed. Only a first champion needs no trial"
        )
    return "moves the alias `champion` if the challenger passed the gate, and is **skipped** if not"


def _score(spec: ModelSpec) -> str:
    share = spec.retraining.ab_share
    trial = (
        f"""While a challenger is on trial, it scores {share:.0%} of the rows, chosen by the hash of their
{"list" if spec.group else "key"}; the column `model_version` says which version scored a row. """
        if share
        else ""
    )
    target = spec.predictions
    table = (
        f"""

**Then** `publish_predictions` writes the predictions to the table `{target.table}` of connection
`{target.connection}`, and those of earlier partitions that it has not written. It has retries of its own."""
        if target.table
        else ""
    )
    return f"""{SUMMARY["score"]}

**Runs** for each partition of `data/{spec.name}` as it is published. Such a run also scores some of the earlier
partitions that were published and not scored, for example while this DAG was paused, the earliest first.

**Reads** the published rows, and the model with the alias `champion`, whose file is checked against its
digest. {trial}The task is **skipped** while there is no champion.{table}

**Emits** the asset `predictions/{spec.name}`. Rows in = rows out + quarantined; a partition is replaced
as a whole.

{_range(spec)}

**When it fails.** Predictions published earlier stay readable. The partition is not published: run
`{spec.name}.data` for it. The model's file does not match its digest in the registry: run `{spec.name}.rollback`,
and find out who changed the file. {_RERUN}"""


def _monitor(spec: ModelSpec) -> str:
    policy, form, unit = spec.retraining, FORMS[spec.cadence.unit], spec.cadence.unit
    key = "DATE" if unit == "day" else "PARTITION"
    window = spec.monitoring.window
    triggers = ", ".join(policy.triggers) or "nothing"
    regular = f" (regular ones {policy.regular})" if "regular" in policy.triggers else ""
    approval = (
        "`approve_retraining`: notifies the model's channels; a person approves or rejects on the page *Required "
        f"Actions*; without an answer within {policy.approval_hours} hours the retraining is rejected. Later "
        "partitions are monitored meanwhile, and no other retraining is proposed. "
        if policy.mode == "approval"
        else ""
    )
    return f"""{SUMMARY["monitor"]}

**Runs** at `{spec.schedule.monitor}` {spec.cadence.zone}, as of the {unit} before. While that is being published or
scored, as after a downtime, `monitor` waits, for half an hour at most.

**Reads** the last {window} of rows, predictions and the labels that have arrived, and the
champion's monitoring baseline.

**Does** `monitor`: every signal, one verdict (ok, suspected, drifted or undetermined) and the *Report*. `decide`:
whether to retrain, triggered by {triggers}; at most one retraining at a time, {policy.cooldown} apart{regular},
{policy.budget} within {policy.budget_period}; never from a backfill. The ledger records the decision either way,
with all signals; `perennial why {spec.name} {key}` explains it. {approval}`request_retraining`: starts
`{spec.name}.train`, and is **skipped** if the decision was against it. An earlier request that no training has
answered, for example while `{spec.name}.train` was paused, is sent again. {_trial(spec)}`notify`: sends notices of
signals that turned bad or recovered to the model's channels.

**Emits** the asset `retraining/{spec.name}`, with the reason, which starts `{spec.name}.train`.

**By hand.** Trigger with a partition key (`{form}`) or fill in *As of*; use *Backfill*, and leave *As of* empty,
for a range. A run waits for the active runs of earlier partitions, however many a backfill starts at once.

**When it fails.** Nothing is decided and the champion stays. A verdict that cannot be computed is
*undetermined*, not a failure. {_RERUN}"""


def _trial(spec: ModelSpec) -> str:
    policy = spec.retraining
    if not policy.trial:
        return ""
    end = (
        f"once the labels of the rows it scored decide the A/B trial, after {policy.trial} at the latest"
        if policy.ab_share
        else f"once it has been compared with the champion on {policy.trial}"
    )
    return f"`conclude_trial`: promotes or discards the challenger on trial, {end}. "


def _rollback(spec: ModelSpec) -> str:
    return f"""{SUMMARY["rollback"]}

**Runs** only when a person triggers it, with a reason.

**Reads** the registry and the ledger: the previous champion, unless *To version* names another version. The
model is loaded and checked against its digest before anything changes.

**Emits** the asset `model/{spec.name}`. Partitions that are already scored keep their predictions; to replace them,
trigger `{spec.name}.score` for a range with *Force*.

**When it fails.** The champion stays as it was. There is no earlier champion, or its file is damaged: name
another version, or train a new one with `{spec.name}.train`."""


_PAGES = {"data": _data, "train": _train, "score": _score, "monitor": _monitor, "rollback": _rollback}
