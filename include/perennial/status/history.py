"""What the manifests of a model say, in one file: an index that is brought up to date by reading only what is new.

The file is a cache. Whatever is not in it, or differs in size or time from its manifest, is read again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from perennial.core.errors import StorageFaultError
from perennial.core.settings import settings
from perennial.ingestion.run import LABELS_STEP, STEP
from perennial.storage import manifests, object_store
from perennial.storage.manifests import Manifest
from perennial.storage.object_store import FileStat

#: Steps that write manifests of partitions, by the name of the manifest's folder.
PARTITION_STEPS = (STEP, LABELS_STEP, "score", "monitor")
#: Those, and training, whose manifest has the partition as of which it trained.
STEPS = (*PARTITION_STEPS, "train")
#: Latest manifests of a step that are indexed.
MAX_MANIFESTS = 1500
#: Changes whenever the file's form does; a file of another form is not read.
_FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """What the index has of one manifest.

    Attributes:
        size: of the manifest, in bytes.
        written: when it was written, in nanoseconds since 1970.
        rows_in: rows read.
        rows_out: rows written.
        quarantined: rows in quarantine.
        seconds: duration of the step.
        memory_mb: peak memory, in MiB.
        device: ``cpu`` or ``cuda``.
        finished_at: when the step ended (UTC).
        version: the model's version, if one was used or made.
        run_id: id of the Airflow run.
        details: what the step's result says, depending on the step.
    """

    size: int
    written: int
    rows_in: int = 0
    rows_out: int = 0
    quarantined: int = 0
    seconds: float = 0.0
    memory_mb: int = 0
    device: str = "cpu"
    finished_at: str = ""
    version: str = ""
    run_id: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class History:
    """The index.

    Attributes:
        steps: entries by step and key, in the order of the keys.
        unreadable: manifests that cannot be believed, as ``step key``, with the reason.
    """

    steps: dict[str, dict[str, Entry]]
    unreadable: dict[str, str] = field(default_factory=dict)

    def of(self, step: str) -> dict[str, Entry]:
        """The entries of one step, by key."""
        return self.steps.get(step, {})


def uri(model: str) -> str:
    """The file of a model's index."""
    return f"{settings().lake}/status/history/{model}.json"


def load(model: str, *, rebuild: bool = False) -> tuple[History, bool]:
    """The index of a model's manifests as they are now.

    Args:
        model: name of the model.
        rebuild: read every manifest, also those that the stored index has.

    Returns:
        The index; and whether it differs from the stored one.

    Raises:
        StorageError: the lake cannot be read.
    """
    stored = History({}) if rebuild else _stored(model)
    steps, unreadable = {}, {}
    for step in STEPS:
        listed = _listed(model, step)
        before = stored.of(step)
        fresh = [k for k, stat in listed.items() if not _is_current(before.get(k), stat)]
        entries = {k: before[k] for k in listed if k in before and k not in set(fresh)}
        for key, entry in _read_all(model, step, {k: listed[k] for k in fresh}):
            if isinstance(entry, Entry):
                entries[key] = entry
            else:
                unreadable[f"{step} {key}"] = entry
        steps[step] = dict(sorted(entries.items()))
    result = History(steps, unreadable)
    return result, rebuild or result != stored


def store(model: str, history: History) -> None:
    """Write the index."""
    content = {
        "format": _FORMAT,
        "steps": {s: {k: asdict(e) for k, e in entries.items()} for s, entries in history.steps.items()},
        "unreadable": history.unreadable,
    }
    object_store.write_text(uri(model), json.dumps(content, separators=(",", ":")))


def _stored(model: str) -> History:
    """The index as it was stored; an empty one if there is none, or if it is damaged."""
    try:
        content = json.loads(object_store.read_text(uri(model)))
        if content["format"] != _FORMAT:
            return History({})
        steps = {s: {k: Entry(**e) for k, e in entries.items()} for s, entries in content["steps"].items()}
        return History(steps, content["unreadable"])
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return History({})


def _listed(model: str, step: str) -> dict[str, FileStat]:
    """The latest manifests of a step, by key."""
    files = object_store.list_files(f"{settings().lake}/manifests/{model}/{step}")
    keys = {name.removesuffix(".json"): stat for name, stat in files.items() if name.endswith(".json")}
    return {key: keys[key] for key in sorted(keys)[-MAX_MANIFESTS:]}


def _is_current(entry: Entry | None, stat: FileStat) -> bool:
    return entry is not None and (entry.size, entry.written) == (stat.size, stat.modified_ns)


def _read_all(model: str, step: str, listed: Mapping[str, FileStat]) -> Iterable[tuple[str, Entry | str]]:
    """Read manifests in parallel: the entry of each, or why it cannot be believed."""

    def read_one(item: tuple[str, FileStat]) -> tuple[str, Entry | str]:
        key, stat = item
        try:
            manifest = manifests.read(model, step, key)
        except StorageFaultError as error:
            return key, error.cause
        return key, _entry(manifest, stat) if manifest else "was removed while it was read"

    if not listed:
        return []
    with ThreadPoolExecutor(8, thread_name_prefix="history") as pool:
        return list(pool.map(read_one, listed.items()))


def _entry(manifest: Manifest, stat: FileStat) -> Entry:
    return Entry(
        size=stat.size,
        written=stat.modified_ns,
        rows_in=manifest.rows_in,
        rows_out=manifest.rows_out,
        quarantined=manifest.quarantined,
        seconds=manifest.duration,
        memory_mb=manifest.memory_mb,
        device=manifest.device,
        finished_at=manifest.finished_at,
        version=manifest.model_version or "",
        run_id=manifest.run_id,
        details=_details(manifest),
    )


def _details(manifest: Manifest) -> dict[str, Any]:
    """What pages show of a step's result."""
    result = manifest.result
    if manifest.step != "monitor":
        return {}
    performance = result.get("performance") or {}
    metric = performance.get("metric", "")
    return {
        "verdict": result.get("verdict", ""),
        "reason": result.get("reason", ""),
        "drift_share": result.get("drift_share"),
        "drifted": result.get("drifted") or [],
        "metric": metric,
        "performance": (performance.get("metrics") or {}).get(metric),
        "performance_at_training": (performance.get("metrics_at_training") or {}).get(metric),
        "performance_verdict": performance.get("verdict", ""),
        "performance_reason": performance.get("reason", ""),
        "signals": {
            name: {key: signal.get(key) for key in ("state", "value", "limit", "level", "reason", "since")}
            for name, signal in (result.get("signals") or {}).items()
        },
        "report": result.get("report", ""),
    }
