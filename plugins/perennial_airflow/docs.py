"""The page that the UI shows for each DAG, made from the model's spec."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perennial.spec.model_spec import ModelSpec

SUMMARY = {
    "data": "Fetches, validates and publishes each night's partition; bad rows go to quarantine.",
    "train": "Trains a challenger, judges it against the champion, promotes it if the gate lets it pass.",
    "score": "Predicts each published partition with the champion.",
    "monitor": "Judges the champion's nights by all signals, and decides whether a retraining would pay.",
    "rollback": "Puts an earlier champion back. By hand only.",
}
_RANGE = (
    "**By hand.** Trigger with a partition key (`YYYY-MM-DD`) for one partition; fill in *First* and *Last partition* "
    "for a range as one task; use *Backfill* for a range with one run a day. All give the same content."
)
_AGAIN = (
    "Then clear the failed task: what is finished is not done again, and nothing half-written can be read."
)


def page(spec: ModelSpec, stage: str) -> str:
    """Markdown for ``<model>.<stage>``: what it does, reads and emits, who owns it, what to do when it fails."""
    parts = [
        f"### {spec.name} · {stage}",
        spec.description,
        _PAGES[stage](spec),
        _told(spec),
        f"**Owner.** {spec.owner}",
    ]
    # a list, as Airflow's page sets paragraphs without a gap
    return "\n\n".join(parts).replace("\n\n**", "\n\n- **") + "\n"


def _told(spec: ModelSpec) -> str:
    channels = ", ".join(f"{c.name} ({c.kind})" for c in spec.alerts.channels) or "no channel of its own"
    return f"""**Who is told** of a failure, of a run that takes too long, and when it is well again: {channels}, and
`PERENNIAL_ALERT_URL` where that is set. `perennial incidents {spec.name}` shows what is open."""


def _data(spec: ModelSpec) -> str:
    label = spec.label
    late = f", {label.arrives_after_days} days later" if label.arrives_after_days else ""
    waits = (
        f" It waits until they have landed, {spec.data.arrival_hours:g} hours at most."
        if spec.data.arrival == "wait"
        else ""
    )
    labels = f"labels from `{label.source}`{late}" if label.source else "labels from a column of the rows"
    return f"""{SUMMARY["data"]}

**Runs** at `{spec.schedule.data}` UTC, for the day before: it publishes that day's rows and the labels known
by then.{waits}

**Reads** rows from `{spec.data.source}`, {labels}, and the suite `expectations.json`.

**Emits** the asset `data/{spec.name}`, which starts `{spec.name}.score` for the same partition.

{_RANGE}

**When it fails.** The log ends with the cause and the remedy. A partition that is missing or malformed: wait
for the feed, or have it sent again. More than {spec.data.quarantine_limit:.0%} of the rows in quarantine, or
a broken expectation about the table as a whole: open the task's *Report*, and correct the feed, or the suite
if it is the suite that is wrong. Earlier partitions stay published. {_AGAIN}"""


def _train(spec: ModelSpec) -> str:
    gate, search = spec.gate, spec.training.search
    tries = f"a search of up to {search.trials} trials" if search.trials else "the parameters of the spec"
    hours = spec.retraining.quiet_hours
    quiet = (
        f"`await_quiet_hours`: a retraining that a verdict asked for waits while it is between {hours.from_hour} and\n"
        f"{hours.to_hour} o'clock ({hours.timezone}), without holding a worker; one triggered by hand does not. "
        if hours
        else ""
    )
    return f"""{SUMMARY["train"]}

**Runs** when a retraining is asked for (the asset `retraining/{spec.name}`, whose event carries the reason),
or by hand.

**Reads** published rows and labels up to its partition date, at a pinned version of the tables. The latest
{spec.training.holdout_days} labelled days are kept out; challenger and champion are judged on those same
rows.

**Does** {quiet}`train`: {tries}, {spec.task}, device {spec.training.device}; the challenger is registered with its
gate result. `promote`: moves the alias `champion` if the gate let it pass, and is **skipped** if not. Gate:
`{spec.metric}` better than the champion's by more than {gate.margin:.1%} at {gate.confidence:.0%} confidence.
Either way the ledger says why.

**Emits** the asset `model/{spec.name}` when the champion changed.

**By hand.** Trigger with a partition key (`YYYY-MM-DD`) or fill in *As of*, and say why.

**When it fails.** The champion stays as it was. Too few labelled rows: let more nights be published. The
registry cannot be reached: start MLflow. {_AGAIN}"""


def _score(spec: ModelSpec) -> str:
    split = spec.retraining.split
    shared = (
        f"""While a challenger is on trial, it predicts {split:.0%} of the rows, chosen by the hash of their
{"list" if spec.group else "key"}; each row tells its `model_version`. """
        if split
        else ""
    )
    return f"""{SUMMARY["score"]}

**Runs** for each partition of `data/{spec.name}` as it is published. Such a run also scores the nights since the last
one scored that were published and not scored, as while this DAG was paused.

**Reads** the published rows, and the model with the alias `champion`, whose file is checked against its
digest. {shared}The task is **skipped** while there is no champion.

**Emits** the asset `predictions/{spec.name}`. Rows in = rows out + quarantined; a partition is replaced
whole.

{_RANGE}

**When it fails.** Predictions published earlier stay readable. The partition is not published: run
`{spec.name}.data` for it. The model's file is not what the registry says: run `{spec.name}.rollback`, and
find out who changed it. {_AGAIN}"""


def _monitor(spec: ModelSpec) -> str:
    policy, watched = spec.retraining, spec.monitoring
    causes = ", ".join(policy.on) or "nothing"
    shadow = (
        "`conclude_shadow`: promotes the challenger on trial, or gives it up, once "
        + ("what came of its rows is sure, after " if policy.split else "it has been compared on ")
        + f"{policy.shadow_nights} nights{' at the latest' * bool(policy.split)}. "
        if policy.shadow_nights
        else ""
    )
    approval = (
        "`approve_retraining`: the model's channels are asked, and a person says yes or no on the page *Required "
        f"Actions*; no answer within {policy.answer_hours} hours is a no. The nights after are monitored meanwhile, "
        "and nothing else is proposed. "
        if policy.mode == "ask"
        else ""
    )
    return f"""{SUMMARY["monitor"]}

**Runs** at `{spec.schedule.monitor}` UTC, as of the day before.

**Reads** the last {watched.window_days} days of rows, predictions and the labels that have arrived, and the
champion's training reference.

**Does** `monitor`: every signal, one verdict (ok, suspected, drifted or undetermined) and the *Report*. `decide`:
retrains on {causes}; at most one at a time, {policy.cooldown_days} days apart, {policy.budget} in
{policy.budget_days} days; never from a backfill. The ledger gets the decision either way, with all signals;
`perennial why {spec.name} DATE` tells it in plain words. {approval}`ask_retraining`: **skipped** if the
decision was no. An earlier request of which no training came, as while `{spec.name}.train` was paused, is sent
again. {shadow}`notify`: tells the model's channels of signals that turned bad or are well again.

**Emits** the asset `retraining/{spec.name}`, with the reason, which starts `{spec.name}.train`.

**By hand.** Trigger with a partition key (`YYYY-MM-DD`) or fill in *As of*.

**When it fails.** Nothing is decided and the champion stays. A verdict that cannot be computed is
*undetermined*, not a failure. {_AGAIN}"""


def _rollback(spec: ModelSpec) -> str:
    return f"""{SUMMARY["rollback"]}

**Runs** only when a person triggers it, with a reason.

**Reads** the registry and the ledger: the champion before this one, unless *To version* says another. The
model is loaded and checked against its digest before anything changes.

**Emits** the asset `model/{spec.name}`. Partitions already scored keep their predictions; to replace them,
trigger `{spec.name}.score` for a range with *Force*.

**When it fails.** The champion stays as it was. There is no earlier champion, or its file is damaged: name
another version, or train a new one with `{spec.name}.train`."""


_PAGES = {"data": _data, "train": _train, "score": _score, "monitor": _monitor, "rollback": _rollback}
