"""Manifests: the record of a finished step, one JSON file for each model, step and key.

The manifest is written last, and it alone shows that a step has finished: the next step reads it instead of trusting
the state of a task, and a rerun with the same inputs does nothing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from perennial.core.dates import utc_now
from perennial.core.errors import StorageFaultError
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
        digest: SHA-256 of all other fields, by which a change of the file is found.
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
    digest: str = ""

    def is_from(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the step finished with these inputs."""
        return bool(self.inputs == json.loads(json.dumps(inputs)))


class Failure(NamedTuple):
    """A step that failed: from which inputs, and whether it may succeed from the same ones later."""

    inputs: dict[str, Any]
    retry: bool


def uri(model: str, step: str, key: str) -> str:
    """The URI of the manifest of one step and key."""
    return f"{settings().lake}/manifests/{model}/{step}/{key}.json"


def read(model: str, step: str, key: str) -> Manifest | None:
    """Read the manifest of a step; None if the step has not finished.

    Raises:
        StorageError: the file cannot be read.
        StorageFaultError: it is not the manifest that this step wrote.
    """
    file = uri(model, step, key)
    try:
        content = json.loads(object_store.read_text(file))
        manifest = Manifest(**content)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise _error(file, f"is not a manifest: {error}", (model, step, key)) from error
    if (manifest.model, manifest.step, manifest.key) != (model, step, key):
        cause = f"is the manifest of {manifest.model}, {manifest.step}, {manifest.key}"
        raise _error(file, cause, (model, step, key))
    if manifest.digest != _digest(content):
        changed = "was changed after it was written" if manifest.digest else "has no digest of its content"
        raise _error(file, changed, (model, step, key))
    if manifest.rows_in != manifest.rows_out + manifest.quarantined:
        raise _error(file, _imbalance(manifest), (model, step, key))
    return manifest


def _error(file: str, cause: str, identity: tuple[str, str, str]) -> StorageFaultError:
    """The error about a manifest that cannot be believed."""
    model, step, key = identity
    return StorageFaultError(
        f"{file} {cause}",
        f"run the step {step} for {key} again with force: it writes a new manifest",
        model=model,
        partition=key,
    )


def _digest(content: dict[str, Any]) -> str:
    """SHA-256 of a manifest's fields, as JSON, without the digest itself."""
    fields = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _imbalance(manifest: Manifest) -> str:
    return f"{manifest.rows_in} rows came in, {manifest.rows_out} went out and {manifest.quarantined} to quarantine"


def find_completed(model: str, step: str, key: str, inputs: dict[str, Any]) -> Manifest | None:
    """Read the manifest of a step that finished with the same inputs; None if the step has to run.

    Raises:
        StorageError: the file cannot be read.
        StorageFaultError: it is not the manifest that this step wrote.
    """
    manifest = read(model, step, key)
    return manifest if manifest and manifest.is_from(inputs) else None


def read_all(model: str, step: str, keys: Iterable[str]) -> dict[str, Manifest]:
    """Read the manifests of a step that exist, by key, in parallel, since each read waits for the storage.

    Raises the errors of `read`.
    """
    keys = list(keys)
    with ThreadPoolExecutor(8, thread_name_prefix="manifest") as pool:
        records = list(pool.map(lambda key: read(model, step, key), keys))
    return {key: record for key, record in zip(keys, records, strict=True) if record}


def finished(model: str, step: str) -> dict[str, int]:
    """List the manifests of a step: by key, when they were written, in nanoseconds since 1970.

    Raises:
        StorageError: the lake cannot be read.
    """
    files = object_store.list_files(f"{settings().lake}/manifests/{model}/{step}")
    return {name.removesuffix(".json"): s.modified_ns for name, s in files.items() if name.endswith(".json")}


def latest(model: str, step: str, until: str | None = None) -> Manifest | None:
    """The manifest of a step for its latest partition, or for the latest up to one; None if there is none.

    Raises the errors of `read` and `finished`.
    """
    keys = [key for key in finished(model, step) if until is None or key <= until]
    return read(model, step, max(keys)) if keys else None


def record_failure(model: str, step: str, key: str, inputs: dict[str, Any], *, retry: bool) -> None:
    """Record that a step failed, so that it is not repeated from the same inputs night by night.

    Args:
        model: name of the model.
        step: name of the step.
        key: a partition date.
        inputs: what it failed from.
        retry: whether it may succeed from the same inputs later.
    """
    record = {"inputs": inputs, "retry": retry, "failed_at": utc_now()}
    object_store.write_text(_failure_uri(model, step, key), json.dumps(record, sort_keys=True))


def failures(model: str, step: str, keys: Iterable[str]) -> dict[str, Failure]:
    """The recorded failures of a step, by key.

    Args:
        model: name of the model.
        step: name of the step.
        keys: keys of interest.
    """
    wanted = set(keys)
    recorded = object_store.list_files(_failure_uri(model, step, "")[: -len("/.json")]) if wanted else {}
    present = sorted(key for key in wanted if f"{key}.json" in recorded)

    def read_one(key: str) -> Failure:
        try:
            content = json.loads(object_store.read_text(_failure_uri(model, step, key)))
            return Failure(content["inputs"], content["retry"])
        except (ValueError, KeyError, TypeError):
            return Failure({}, retry=True)  # a damaged record holds back nothing

    with ThreadPoolExecutor(8, thread_name_prefix="failure") as pool:
        return dict(zip(present, pool.map(read_one, present), strict=True))


def _failure_uri(model: str, step: str, key: str) -> str:
    return f"{settings().lake}/manifests/{model}/{step}/failed/{key}.json"


def write(manifest: Manifest, started: float) -> Manifest:
    """Fill in code version, duration, memory and time, and write the manifest. Call it last.

    Args:
        manifest: of the finished step.
        started: when the step began, by ``time.monotonic()``.

    Returns:
        The manifest as written.

    Raises:
        StorageFaultError: the rows do not add up.
        StorageError: the file cannot be written.
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
        raise StorageFaultError(
            _imbalance(complete),
            "this is a defect of the step: report it with the manifest's inputs",
            model=complete.model,
            partition=complete.key,
        )
    return _store(complete)


def rewrite(manifest: Manifest) -> Manifest:
    """Write a manifest again after rows were erased, with its code version, duration and time as they are.

    Raises:
        StorageFaultError: the rows do not add up.
        StorageError: the file cannot be written.
    """
    if manifest.rows_in != manifest.rows_out + manifest.quarantined:
        raise _error(
            uri(manifest.model, manifest.step, manifest.key),
            _imbalance(manifest),
            (manifest.model, manifest.step, manifest.key),
        )
    return _store(manifest)


def _store(manifest: Manifest) -> Manifest:
    """Write a manifest with the digest of its content."""
    content = json.loads(json.dumps(asdict(manifest)))
    complete = replace(manifest, digest=_digest(content))
    object_store.write_text(
        uri(complete.model, complete.step, complete.key),
        json.dumps(content | {"digest": complete.digest}, indent=1, sort_keys=True),
    )
    return complete


def write_all(manifests: Iterable[Manifest], started: float) -> list[Manifest]:
    """Write the manifests of a range in parallel, since each write waits for the storage.

    Raises the errors of `write`.
    """
    with ThreadPoolExecutor(8, thread_name_prefix="manifest") as pool:
        return list(pool.map(lambda m: write(m, started), manifests))
