"""Manifests: the record of a finished step, one JSON file for each model, step and key.

The manifest is written last, and it alone shows that a step has finished: the next step reads it instead of trusting
the state of a task, and a rerun with the same inputs does nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from perennial.core.dates import utc_now
from perennial.core.errors import StorageError
from perennial.core.runtime import code_version, peak_memory_mb
from perennial.core.settings import settings
from perennial.storage import object_store


@dataclass(frozen=True)
class Manifest:
    """One finished step.

    Attributes:
        key: a partition date, or a range ``start..end``.
        inputs: what the result depends on, by digest or version; the same inputs give the same result.
        result: what the step returned.
        outputs: what was written: table versions, files, digests.
        rows_in: rows read; always ``rows_out + quarantined``.
        device: ``cpu`` or ``cuda``.
        run_id: of the Airflow run.
        duration: seconds.
        memory_mb: peak resident memory of the process, in MiB.
        finished_at: UTC, as `dates.utc_now` writes it.
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
    """The URI of the manifest of one step and key."""
    return f"{settings().lake}/manifests/{model}/{step}/{key}.json"


def read(model: str, step: str, key: str) -> Manifest | None:
    """Read the manifest of a step; None if the step has not finished.

    Raises:
        StorageError: the file cannot be read, or is not a manifest.
    """
    file = uri(model, step, key)
    try:
        return Manifest(**json.loads(object_store.read_text(file)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise StorageError(
            f"{file} is not a manifest: {error}",
            "remove it and run the step again",
            model=model,
            partition=key,
        ) from error


def find_completed(model: str, step: str, key: str, inputs: dict[str, Any]) -> Manifest | None:
    """Read the manifest of a step that finished with the same inputs; None if the step has to run.

    Raises:
        StorageError: the file cannot be read, or is not a manifest.
    """
    manifest = read(model, step, key)
    return manifest if manifest and manifest.inputs == json.loads(json.dumps(inputs)) else None


def write(manifest: Manifest, started: float) -> Manifest:
    """Fill in code version, duration, memory and time, and write the manifest. Call it last.

    Args:
        manifest: of the finished step.
        started: when the step began, by ``time.monotonic()``.

    Returns:
        The manifest as written.

    Raises:
        StorageError: the rows do not add up, or the file cannot be written.
    """
    complete = Manifest(
        **asdict(manifest)
        | {
            "code_version": code_version(),
            "duration": round(time.monotonic() - started, 3),
            "memory_mb": peak_memory_mb(),
            "finished_at": utc_now(),
        }
    )
    if complete.rows_in != complete.rows_out + complete.quarantined:
        raise StorageError(
            f"{complete.rows_in} rows came in, {complete.rows_out} went out and {complete.quarantined} to quarantine",
            "this is a defect of the step: report it with the manifest's inputs",
            model=complete.model,
            partition=complete.key,
        )
    object_store.write_text(
        uri(complete.model, complete.step, complete.key),
        json.dumps(asdict(complete), indent=1, sort_keys=True),
    )
    return complete


def write_all(manifests: Iterable[Manifest], started: float) -> list[Manifest]:
    """Write the manifests of a range in parallel, since each write waits for the storage.

    Raises the errors of `write`.
    """
    with ThreadPoolExecutor(8, thread_name_prefix="manifest") as pool:
        return list(pool.map(lambda m: write(m, started), manifests))
