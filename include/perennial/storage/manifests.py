"""The record that a finished step leaves, written last: the next step believes it, and a rerun finds its work done."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from perennial.core.errors import StorageError
from perennial.core.runtime import code_version, peak_memory_mb
from perennial.core.settings import settings
from perennial.storage import object_store


@dataclass(frozen=True)
class Manifest:
    """One finished step.

    Attributes:
        inputs: what the result depends on, by digest or version; the same inputs give the same result.
        outputs: what was written: table versions, files, digests.
        rows_in: rows read; always ``rows_out + quarantined`` where rows pass through.
        result: what the step returned.
        duration: seconds. memory_mb: peak resident memory of the process, in MiB.
    """

    model: str
    step: str
    key: str
    inputs: dict[str, Any]
    result: dict[str, Any]
    outputs: dict[str, Any] = field(default_factory=dict)
    rows_in: int = 0
    rows_out: int = 0
    quarantined: int = 0
    device: str = "cpu"
    model_version: str | None = None
    run_id: str = ""
    code_version: str = ""
    duration: float = 0.0
    memory_mb: int = 0
    finished_at: str = ""


def uri(model: str, step: str, key: str) -> str:
    """Where the manifest of one step and key (a date, or ``start..end``) is."""
    return f"{settings().lake}/manifests/{model}/{step}/{key}.json"


def read(model: str, step: str, key: str) -> Manifest | None:
    """The manifest, if the step finished.

    Raises:
        StorageError: it is there but cannot be understood.
    """
    place = uri(model, step, key)
    try:
        return Manifest(**json.loads(object_store.read_text(place)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise StorageError(
            f"{place} is not a manifest: {error}",
            "remove it and run the step again",
            model=model,
            partition=key,
        ) from error


def find_completed(model: str, step: str, key: str, inputs: dict[str, Any]) -> Manifest | None:
    """The manifest, if the step finished from these very inputs; None: there is work to do."""
    found = read(model, step, key)
    return found if found and found.inputs == json.loads(json.dumps(inputs)) else None


def write(manifest: Manifest, started: float) -> Manifest:
    """Complete (code version, duration since ``started = time.monotonic()``, memory) and write. Call it last."""
    done = Manifest(
        **asdict(manifest)
        | {
            "code_version": code_version(),
            "duration": round(time.monotonic() - started, 3),
            "memory_mb": peak_memory_mb(),
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
    )
    if done.rows_in != done.rows_out + done.quarantined:
        raise StorageError(
            f"{done.rows_in} rows came in, {done.rows_out} went out and {done.quarantined} to quarantine",
            "this is a defect of the step: report it with the manifest's inputs",
            model=done.model,
            partition=done.key,
        )
    object_store.write_text(
        uri(done.model, done.step, done.key), json.dumps(asdict(done), indent=1, sort_keys=True)
    )
    return done


def write_all(manifests: Iterable[Manifest], started: float) -> list[Manifest]:
    """`write` the manifests of a range, several at a time: it is mostly waiting for the disk to have them."""
    with ThreadPoolExecutor(8, thread_name_prefix="manifest") as pool:
        return list(pool.map(lambda m: write(m, started), manifests))
