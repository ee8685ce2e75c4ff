"""What a model's steps took: time, memory, time with a GPU and, with a price in the compute profile, money."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter

from perennial.core.errors import SpecError
from perennial.ingestion.run import LABELS_STEP, STEP
from perennial.spec import compute_profile
from perennial.spec.compute_profile import Price
from perennial.spec.model_spec import ModelSpec
from perennial.status.history import STEPS, Entry, History

#: Manifests of one run that began within so many seconds belong to one range: when a step ended is written in seconds.
_TOGETHER_SECONDS = 2.0


@dataclass(frozen=True)
class StepRun:
    """One run of a step, over one partition or a range.

    Attributes:
        step: name of the step.
        first: its first partition.
        last: its last partition.
        run_id: id of the Airflow run; empty outside Airflow.
        finished_at: when it ended (UTC).
        seconds: its duration.
        gpu_seconds: its duration if it used a GPU; 0 otherwise.
        memory_mb: peak memory, in MiB.
        rows: rows read.
        money: by the price of the step's compute profile; None if that has none.
    """

    step: str
    first: str
    last: str
    run_id: str
    finished_at: str
    seconds: float
    gpu_seconds: float
    memory_mb: int
    rows: int
    money: float | None = None


def prices(spec: ModelSpec) -> dict[str, Price]:
    """The price of each step that has one, by the name of its manifests' folder.

    Each worker of a step costs the price of the profile. A profile that cannot be read has none.
    """
    known = {}
    for step in STEPS:
        of_step = STEP if step == LABELS_STEP else step
        try:
            profile = compute_profile.load_profile(
                spec.compute.get(of_step, compute_profile.default_profile())  # type: ignore[call-overload]
            )
        except SpecError:
            continue
        if profile.price is not None:
            per_hour = profile.price.per_hour * profile.worker_count(of_step)
            known[step] = Price(per_hour=per_hour, currency=profile.price.currency)
    return known


def currency(prices_: Mapping[str, Price]) -> str:
    """The currency of all prices; empty if there are none, or several."""
    currencies = {price.currency for price in prices_.values()}
    return currencies.pop() if len(currencies) == 1 else ""


def runs(history: History, prices_: Mapping[str, Price]) -> list[StepRun]:
    """The runs of steps, in the order in which they ended.

    The manifests of a range have the duration of the whole run: of those that began together, one counts.

    Args:
        history: index of the manifests.
        prices_: as of `prices`; if they have several currencies, none counts.
    """
    priced = prices_ if currency(prices_) else {}
    began = sorted(
        (
            (step, e.run_id, datetime.fromisoformat(e.finished_at).timestamp() - e.seconds, key, e)
            for step, entries in history.steps.items()
            for key, e in entries.items()
            if e.finished_at
        ),
        key=itemgetter(0, 1, 2, 3),
    )
    groups: list[list[tuple[str, str, float, str, Entry]]] = []
    for item in began:
        last = groups[-1][0] if groups else None
        if last is None or item[:2] != last[:2] or item[2] - last[2] > _TOGETHER_SECONDS:
            groups.append([])
        groups[-1].append(item)
    return sorted((_run(group, priced) for group in groups), key=lambda run: run.finished_at)


def _run(group: Sequence[tuple[str, str, float, str, Entry]], prices_: Mapping[str, Price]) -> StepRun:
    step, run_id, *_ = group[0]
    keys = sorted(key for *_, key, _ in group)
    entries = [entry for *_, entry in group]
    seconds = max(entry.seconds for entry in entries)
    price = prices_.get(step)
    return StepRun(
        step=step,
        first=keys[0],
        last=keys[-1],
        run_id=run_id,
        finished_at=max(entry.finished_at for entry in entries),
        seconds=seconds,
        gpu_seconds=seconds if any(entry.device == "cuda" for entry in entries) else 0.0,
        memory_mb=max(entry.memory_mb for entry in entries),
        rows=sum(entry.rows_in for entry in entries),
        money=None if price is None else seconds / 3600 * price.per_hour,
    )


def by_month(of: Sequence[StepRun], before: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The sums of runs, by the month in which they ended.

    Args:
        of: the runs whose manifests are indexed.
        before: sums that were stored, for months of which not all manifests are indexed any more.
    """
    sums: dict[str, dict[str, float]] = defaultdict(
        lambda: {"seconds": 0.0, "gpu_seconds": 0.0, "memory_mb": 0.0}
    )
    for run in of:
        month = sums[run.finished_at[:7]]
        month["seconds"] += run.seconds
        month["gpu_seconds"] += run.gpu_seconds
        month["memory_mb"] = max(month["memory_mb"], run.memory_mb)
        if run.money is not None:
            month["money"] = month.get("money", 0.0) + run.money
    months = {month: dict(cost) for month, cost in before.items()}
    for name, month in sums.items():
        earlier = months.get(name, {})
        months[name] = {key: round(max(value, earlier.get(key, 0.0)), 2) for key, value in month.items()}
    return dict(sorted(months.items()))
