"""What each action does, from what the user chose: the operations, and what the user must know before they are done."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from perennial.alerting import incidents, mutes
from perennial.console import _model_page
from perennial.console.actions import (
    REASON,
    STAGES,
    Answer,
    Backfill,
    MuteSignal,
    Need,
    Operation,
    Pause,
    Question,
    Run,
)
from perennial.core import dates
from perennial.core.errors import PerennialError
from perennial.lifecycle import champion
from perennial.spec.model_spec import ModelSpec
from perennial.status import record, rescoring
from perennial.storage import ledger
from perennial.storage.ledger import Decision, LedgerKind

#: Stages whose partitions can be run by hand, with what they do.
_BY_HAND = {
    "data": "fetch, validate and publish",
    "score": "predict with the champion",
    "monitor": "compute signals and verdict",
}
#: Days for which a signal is muted, unless the user says otherwise.
MUTE_DAYS = 7


@dataclass(frozen=True)
class Action:
    """One thing that a person can do.

    Attributes:
        name: of the action; part of its address.
        title: on its button, and above its page.
        needs: permissions of which any one shows the button.
        command: does the same on the command line; empty where only Airflow can do it.
    """

    name: str
    title: str
    needs: frozenset[Need]
    command: str = ""


def _needs(right: Literal["run", "edit", "answer"], *stages: str) -> frozenset[Need]:
    return frozenset(Need(right, stage) for stage in stages)


_REASON = "--reason 'WHY'"
ACTIONS = {
    action.name: action
    for action in (
        Action("run", "Run partitions", _needs("run", *_BY_HAND),
               "perennial run score --model {model} --start PARTITION --end PARTITION"),
        Action("retrain", "Retrain", _needs("run", "train"),
               "perennial run train --model {model} --as-of PARTITION " + _REASON),
        Action("answer", "Approve or reject", _needs("answer", "monitor")),
        Action("rollback", "Roll back", _needs("run", "rollback"),
               "perennial run rollback --model {model} " + _REASON),
        Action("promote", "Promote a version", _needs("run", "rollback"),
               "perennial run rollback --model {model} --to-version VERSION " + _REASON),
        Action("mute", "Mute alerts", _needs("edit", "monitor"),
               "perennial mute {model} SIGNAL --until DATE " + _REASON),
        Action("pause", "Pause or resume", _needs("edit", *STAGES)),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """A field of an action, which the user fills in before the action is shown in full.

    Attributes:
        name: of the field.
        label: for people.
        value: that was chosen, or is proposed.
        kind: ``partition``, ``date``, ``text``, ``select`` or ``flag``.
        options: values of a ``select``, with what they are called.
        hint: what to enter.
    """

    name: str
    label: str
    value: str
    kind: str = "partition"
    options: list[tuple[str, str]] = field(default_factory=list)
    hint: str = ""


@dataclass(frozen=True)
class Plan:
    """What an action is about to do.

    Attributes:
        choices: fields that determine it.
        operations: what is done, in order; empty if that is not possible.
        effects: what follows, in words.
        then: runs that the operations start.
        needs: permissions that the user must have.
        buttons: that perform it, with their captions.
        problem: why it cannot be done with these choices; empty if it can.
        remedy: what to do about it.
    """

    choices: list[Choice] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    effects: list[str] = field(default_factory=list)
    then: list[Run] = field(default_factory=list)
    needs: frozenset[Need] = frozenset()
    buttons: list[tuple[str, str]] = field(default_factory=list)
    problem: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Situation:
    """What plans are made from.

    Attributes:
        spec: the model.
        allowed: permissions of the user.
        values: what the user chose.
        questions: that wait for a person.
        paused: whether the DAG of each stage is paused.
    """

    spec: ModelSpec
    allowed: Collection[Need]
    values: Mapping[str, str]
    questions: Sequence[Question] = ()
    paused: Mapping[str, bool] = field(default_factory=dict)

    def value(self, name: str, default: str = "") -> str:
        """What the user entered into a field, without spaces around it."""
        return self.values.get(name, default).strip()

    def flag(self, name: str, default: bool = False) -> bool:
        """Whether a box is ticked; the default where the user has not seen it yet."""
        return self.values[name] == "yes" if name in self.values else (default and not self.values)


def plan(action: str, situation: Situation) -> Plan:
    """Make the plan of an action.

    Raises:
        StorageError: the lake cannot be read.
    """
    made = _PLANS[action](situation)
    started = {o.stage for o in (*made.operations, *made.then) if isinstance(o, Run | Backfill)}
    waiting = [
        f"{situation.spec.name}.{stage} is paused: its runs wait until somebody resumes it."
        for stage in sorted(started)
        if situation.paused.get(stage)
    ]
    return replace(made, effects=[*waiting, *made.effects])


def _run(at: Situation) -> Plan:
    """Partitions of data, scoring or monitoring, as one run or as one for each."""
    stages = [stage for stage in _BY_HAND if Need("run", stage) in at.allowed]
    stage = at.value("stage") or ("score" if "score" in stages else next(iter(stages), ""))
    start, end, force = at.value("start"), at.value("end"), at.flag("force")
    way = at.value("as", "backfill")
    choices = [
        Choice("stage", "What", stage, "select", [(s, f"{s}: {_BY_HAND[s]}") for s in stages]),
        Choice("start", "First partition", start),
        Choice("end", "Last partition", end, hint="Empty: only the first one."),
    ]
    if stage == "data":
        ways = [
            ("backfill", "one run for each partition, scored as well"),
            ("task", "one task, nothing else"),
        ]
        choices.append(Choice("as", "A range as", way, "select", ways))
    choices.append(Choice("force", "Do finished partitions again", "yes" if force else "", "flag"))
    if not start or stage not in _BY_HAND:
        return Plan(choices)
    cadence, needs = at.spec.cadence, frozenset({Need("run", stage)})
    try:
        keys = cadence.keys(start, end or start)
        cadence.refuse_future(keys[-1], "the last partition")
    except PerennialError as error:
        return Plan(choices, problem=error.cause, remedy=error.remedy)
    conf: dict[str, object] = {"force": True} if force else {}
    operation: Operation
    if len(keys) == 1:
        operation = Run(stage, conf | {"reason": REASON}, start, keys)
    elif stage == "score" or (stage == "data" and way == "task"):
        operation = Run(stage, {"start": keys[0], "end": keys[-1], **conf, "reason": REASON}, "", keys)
    else:
        first, last = cadence.start_of(keys[0]), cadence.start_of(keys[-1])
        operation = Backfill(stage, first, last, conf | {"reason": REASON}, keys)
    return Plan(choices, [operation], _effects_of_run(at.spec, operation, force), needs=needs,
                buttons=[("start", "Start")])  # fmt: skip


def _effects_of_run(spec: ModelSpec, operation: Operation, force: bool) -> list[str]:
    effects = []
    if not force:
        effects.append("Partitions that are finished with the same inputs are not done again.")
    if isinstance(operation, Run) and operation.stage == "data" and operation.partition:
        effects.append(f"{spec.name}.score starts by itself once the partition is published.")
    if isinstance(operation, Backfill):
        effects.append("A backfill requests no retraining.")
    return effects


def _retrain(at: Situation) -> Plan:
    """A training, whose gate decides about the champion."""
    status = record.read(at.spec.name)
    as_of = at.value("as_of") or (status.last.get("published", "") if status else "")
    force = at.flag("force")
    choices = [
        Choice("as_of", "As of", as_of, hint="The latest partition to train on."),
        Choice("force", "Train again on the same data with the same spec", "yes" if force else "", "flag"),
    ]
    if not as_of:
        return Plan(choices)
    try:
        at.spec.cadence.refuse_future(at.spec.cadence.parse(as_of, "as_of"), "as_of")
    except PerennialError as error:
        return Plan(choices, problem=error.cause, remedy=error.remedy)
    conf: dict[str, object] = {"reason": REASON} | ({"force": True} if force else {})
    effects = ["The gate decides whether the new version becomes champion.",
               "The ledger records the reason."]  # fmt: skip
    return Plan(choices, [Run("train", conf, as_of, [as_of])], effects,
                needs=_needs("run", "train"), buttons=[("start", "Start training")])  # fmt: skip


def _answer(at: Situation) -> Plan:
    """The answer to a question that a run asks."""
    questions = {q.run_id: q for q in at.questions}
    if not questions:
        return Plan(problem="Nothing waits for an answer.")
    chosen = questions.get(at.value("run")) or next(iter(questions.values()))
    options = [(q.run_id, f"{q.subject} {q.partition}") for q in questions.values()]
    choices = [Choice("run", "Question", chosen.run_id, "select", options)] if len(options) > 1 else []
    effects = [chosen.subject, *(line for line in chosen.body.replace("*", "").splitlines() if line.strip())]
    return Plan(choices, [Answer(chosen)], effects, needs=_needs("answer", chosen.stage),
                buttons=[(option, option) for option in chosen.options])  # fmt: skip


def _roll_back(at: Situation) -> Plan:
    return _change_champion(at, rescore=True)


def _promote(at: Situation) -> Plan:
    return _change_champion(at, rescore=False)


def _change_champion(at: Situation, *, rescore: bool) -> Plan:
    """Another version becomes champion; what the present one scored can be scored again."""
    records = ledger.records(at.spec.name)
    changes = champion.changes(records)
    current = str(changes[-1]["model_version"]) if changes else ""
    before = champion.predecessor(changes, current) or next(
        (str(c["model_version"]) for c in reversed(changes) if c["model_version"] != current), ""
    )
    version = at.value("version", before if rescore else "")
    versions = [
        (v.version, f"version {v.version}, trained as of {v.as_of}, {v.decision}" + " (champion)" * v.is_champion)
        for v in _model_page.versions(records, changes)
        if v.version and not v.is_champion
    ]  # fmt: skip
    again = at.flag("rescore", rescore)
    choices = [
        Choice("version", "Becomes champion", version, "select", [("", "choose a version"), *versions]),
        Choice(
            "rescore", f"Score again what version {current or '–'} scored", "yes" if again else "", "flag"
        ),
    ]
    if not versions:
        return Plan(problem="There is no other version.", remedy="Train one.")
    if not version:
        return Plan(choices)
    if version not in dict(versions):
        return Plan(choices, problem=f"There is no version {version} that could become champion.")
    spans = rescoring.ranges(at.spec, current) if current else []
    then = [
        Run("score", {"start": s.start, "end": s.end, "reason": REASON}, "", s.keys()) for s in spans if again
    ]
    conf = {"to_version": int(version), "reason": REASON, "rescore": again}
    effects = [
        f"Version {version} is loaded and checked, then it replaces version {current or '–'} as champion."
    ]
    count, listed = sum(map(len, spans)), ", ".join(span.compact for span in spans)
    if not count:
        effects.append(f"Version {current or '–'} scored no partition: nothing is scored again.")
    elif again:
        effects.append(
            f"Version {current} scored {count} partitions, which version {version} then scores again: {listed}"
        )
    else:
        effects.append(f"Version {current} scored {count} partitions, which keep its predictions: {listed}")
    needs = _needs("run", "rollback", *(["score"] if again else []))
    return Plan(choices, [Run("rollback", conf)], effects, then, needs,
                [("start", "Roll back" if rescore else "Promote")])  # fmt: skip


def _mute(at: Situation) -> Plan:
    """No alerts of a signal for a while."""
    log = incidents.read_log(at.spec.name)
    signal = at.value("signal") or (log.open[0].signal if log.open else "")
    until = at.value("until") or dates.add_days(datetime.now(UTC).date().isoformat(), MUTE_DAYS)
    choices = [
        Choice("signal", "Signal", signal, "text", hint="Or a pattern, such as failure:*."),
        Choice("until", "Until", until, "date", hint="The last date that is muted."),
    ]
    if not signal:
        return Plan(choices)
    try:
        mutes.check_mute(at.spec, signal, until, "to be given")
    except PerennialError as error:
        return Plan(choices, problem=error.cause, remedy=error.remedy)
    effects = [
        "No channel gets alerts of it until then. Incidents are still recorded, and listed in the daily summary.",
        f"To end it: perennial unmute {at.spec.name} '{signal}'",
    ]
    return Plan(choices, [MuteSignal(signal, until)], effects, needs=_needs("edit", "monitor"),
                buttons=[("start", "Mute")])  # fmt: skip


def _pause(at: Situation) -> Plan:
    """The DAGs of a model start no runs by themselves, or do so again."""
    operations = [Pause(stage, at.paused[stage]) for stage in STAGES if stage in at.paused]
    if not operations:
        return Plan(problem="Airflow does not know the DAGs of this model yet.")
    effects = [
        "While its DAGs are paused, no run of the model starts by itself; runs that have begun go on.",
        "Partitions that are due meanwhile are done by the first runs afterwards.",
    ]
    is_paused = [operation.is_paused for operation in operations]
    last = next(iter(ledger.records(at.spec.name, LedgerKind.SCHEDULES)[::-1]), None)
    if any(is_paused) and last and last["decision"] == Decision.PAUSED:
        effects.insert(0, f"{last['actor']} paused it at {last['recorded_at']}: {last['reason']}")
    buttons = [("pause", "Pause all")] * (not all(is_paused)) + [("resume", "Resume all")] * any(is_paused)
    needs = frozenset(Need("edit", operation.stage) for operation in operations)
    return Plan([], list(operations), effects, needs=needs, buttons=buttons)


_PLANS: dict[str, Callable[[Situation], Plan]] = {
    "run": _run, "retrain": _retrain, "answer": _answer, "rollback": _roll_back, "promote": _promote,
    "mute": _mute, "pause": _pause,
}  # fmt: skip
