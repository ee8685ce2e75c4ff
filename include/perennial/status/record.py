"""The status record of a model: its form, and its file ``status/<model>.json``. Imports nothing heavy.

What depends on the clock is not in it: `last_due` computes what is due at the time of the question.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from perennial.core.dates import utc_timestamp
from perennial.core.partitions import Cadence
from perennial.core.settings import settings
from perennial.storage import object_store

#: Changes whenever the record's form does; a record of another form does not count.
FORMAT = 1
#: Fields that records of this form may lack, because an earlier release wrote them.
_LATER_FIELDS = ("currency",)
#: Latest values of each series.
SERIES_LENGTH = 40


@dataclass(frozen=True)
class ChampionStatus:
    """The champion according to the ledger.

    Attributes:
        version: number of the version.
        since: when it became champion (UTC).
        partition: partition as of which it was trained; empty after a rollback.
        change: how: ``promoted``, ``rolled back`` or ``followed``.
        actor: who or what made it champion.
        reason: why.
    """

    version: str
    since: str
    partition: str
    change: str
    actor: str
    reason: str


@dataclass(frozen=True)
class VerdictStatus:
    """The latest verdict of monitoring.

    Attributes:
        as_of: last partition of its window.
        verdict: on drift.
        reason: of the verdict.
        version: the champion that was monitored; empty if there was none.
        performance: verdict on performance.
        performance_reason: of the verdict on performance.
        bad_signals: names of signals that are bad, in order.
        suspected_signals: names of signals that are suspected, in order.
        report: URI of the report.
    """

    as_of: str
    verdict: str
    reason: str
    version: str
    performance: str
    performance_reason: str
    bad_signals: list[str]
    suspected_signals: list[str]
    report: str


@dataclass(frozen=True)
class ModelStatus:
    """The status of a model.

    Attributes:
        model: name of the model.
        written_at: when the record was written (UTC).
        task: kind of prediction.
        owner: who is responsible.
        description: what it predicts.
        tags: tags of its DAGs.
        unit: length of a partition.
        week_starts: weekday on which weeks begin.
        timezone: whose days, weeks and months partitions are.
        first_due: first partition of the schedule.
        last_due: last partition of the schedule; empty if it has no end.
        champion: the champion; None before the first promotion.
        trial: version of the challenger on trial; empty if there is none.
        verdict: the latest verdict; None if there is none.
        decision: the ledger's latest decision on retraining: partition, decision, reason, recorded_at.
        proposals: retrainings that wait for a person's answer: partition, reason, until.
        metric: the gate's metric.
        performance: metric by last partition of the window, in order.
        performance_at_training: the metric on held-out rows of the training.
        drift: drifted share of the importance by last partition of the window, in order.
        drift_limit: share at which a verdict is suspicious.
        last: latest partition by stage: ``published``, ``labelled``, ``scored``, ``monitored``, ``trained``.
        partitions: number of published partitions.
        quarantined: rows in quarantine by partition, latest ones only, in order.
        failed: latest failed partition by step.
        unreadable: manifests that cannot be believed, with the reason.
        cost: by month, as YYYY-MM: ``seconds``, ``gpu_seconds``, the highest ``memory_mb``, and ``money`` if the
            compute profiles have a price.
        currency: of that money; empty without a price.
        ledger_head: identifies the ledger's last record when this was written.
    """

    model: str
    written_at: str
    task: str
    owner: str
    description: str
    tags: list[str]
    unit: Any
    week_starts: Any
    timezone: str
    first_due: str
    last_due: str
    champion: ChampionStatus | None = None
    trial: str = ""
    verdict: VerdictStatus | None = None
    decision: dict[str, str] = field(default_factory=dict)
    proposals: list[dict[str, str]] = field(default_factory=list)
    metric: str = ""
    performance: list[tuple[str, float | None]] = field(default_factory=list)
    performance_at_training: float | None = None
    drift: list[tuple[str, float | None]] = field(default_factory=list)
    drift_limit: float | None = None
    last: dict[str, str] = field(default_factory=dict)
    partitions: int = 0
    quarantined: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    cost: dict[str, dict[str, float]] = field(default_factory=dict)
    currency: str = ""
    ledger_head: str = ""

    @property
    def cadence(self) -> Cadence:
        """The cadence of the partitions."""
        return Cadence(self.unit, self.week_starts, self.timezone)

    def due(self, moment: datetime | None = None) -> str:
        """The latest partition that has ended, within the schedule; empty if none has.

        Args:
            moment: the time, now by default.
        """
        last = self.cadence.last_ended(moment or datetime.now(UTC))
        last = min(last, self.last_due) if self.last_due else last
        return last if last >= self.first_due else ""

    def open_proposals(self, moment: datetime | None = None) -> list[dict[str, str]]:
        """The proposals whose time for an answer has not passed."""
        current = utc_timestamp(moment or datetime.now(UTC))
        return [p for p in self.proposals if p["until"] >= current]


def uri(model: str) -> str:
    """The file of a model's status."""
    return f"{settings().lake}/status/{model}.json"


def write(status: ModelStatus) -> None:
    """Write a record; the file is replaced whole.

    Raises:
        StorageError: the lake cannot be written.
    """
    object_store.write_text(
        uri(status.model), json.dumps({"format": FORMAT} | asdict(status), sort_keys=True)
    )


def read(model: str) -> ModelStatus | None:
    """Read a record; None if there is none, or one of another form.

    Raises:
        StorageError: the lake cannot be read.
    """
    try:
        return parse(json.loads(object_store.read_text(uri(model))))
    except FileNotFoundError:
        return None
    except ValueError:
        return None


def parse(content: Any) -> ModelStatus | None:
    """A record from its JSON; None if it has another form."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None
    try:
        # A field that came later has its default until the next step writes the record.
        known = [f.name for f in fields(ModelStatus) if f.name in content or f.name not in _LATER_FIELDS]
        values = {name: content[name] for name in known}
        champion, verdict = values["champion"], values["verdict"]
        values["champion"] = ChampionStatus(**champion) if champion else None
        values["verdict"] = VerdictStatus(**verdict) if verdict else None
        for name in ("performance", "drift"):
            values[name] = [(str(key), value) for key, value in values[name]]
        status = ModelStatus(**values)
        status.due()  # the cadence is one
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return status


def read_many(models: Iterable[str]) -> dict[str, ModelStatus]:
    """Read the records of some models that have one, in parallel.

    Raises:
        StorageError: the lake cannot be read.
    """
    names = list(models)
    with ThreadPoolExecutor(16, thread_name_prefix="status") as pool:
        return {name: s for name, s in zip(names, pool.map(read, names), strict=True) if s}


def names() -> set[str]:
    """Names of the models that have a record.

    Raises:
        StorageError: the lake cannot be read.
    """
    files = object_store.list_files(f"{settings().lake}/status")
    return {name.removesuffix(".json") for name in files if name.endswith(".json") and "/" not in name}
