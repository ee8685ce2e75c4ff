"""The registry (MLflow): registered versions, the aliases ``champion`` and ``challenger``, artifacts of runs.

Reads and alias moves go over MLflow's REST API, so that light tasks need not import MLflow; only `register`, which
runs inside training, does.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.core.errors import ArtifactError, RegistryError, StorageError
from perennial.core.settings import settings
from perennial.spec.model_spec import ModelSpec

if TYPE_CHECKING:
    from perennial.modeling.trained_model import TrainedModel

ARTIFACT_FOLDER = "perennial"  # of a run's artifacts
TIMEOUT = 30


@dataclass(frozen=True)
class ModelVersion:
    """One registered version."""

    name: str
    version: str
    run_id: str
    model_id: str
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of the model file."""
        return self.tags.get("digest", "")

    @property
    def as_of(self) -> str:
        """The partition date up to which it was trained and judged."""
        return self.tags.get("as_of", "")


def credentials() -> dict[str, Any]:
    """What MLflow is shown, as `requests` takes it; MLflow's own variables say what."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {
        "auth": (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None,
        "headers": {"Authorization": f"Bearer {token}"} if token else {},
    }


def _call(method: str, path: str, *, missing_ok: bool = False, stream: bool = False, **request: Any) -> Any:
    import requests

    uri = settings().mlflow_uri
    try:
        answer = requests.request(
            method, f"{uri}{path}", timeout=TIMEOUT, stream=stream, **credentials(), **request
        )
    except requests.RequestException as error:
        raise RegistryError(
            f"MLflow at {uri} does not answer ({type(error).__name__})",
            "start it (locally: make run), or set MLFLOW_TRACKING_URI; then run this again",
        ) from error
    # A model without the alias is answered 400, a model that does not exist 404; a 404 from another server, or a proxy,
    # must not pass for "there is no champion".
    if missing_ok and (
        (answer.status_code == 404 and (stream or "RESOURCE_DOES_NOT_EXIST" in answer.text))
        or (answer.status_code == 400 and "not found" in answer.text)
    ):
        return None
    if not answer.ok:
        hint = (
            "name the host in MLflow's --allowed-hosts" if answer.status_code == 403 else "see MLflow's log"
        )
        raise RegistryError(
            f"MLflow at {uri} answered {answer.status_code} to {path}: {answer.text[:200]}", hint
        )
    try:
        return answer if stream else answer.json()
    except requests.JSONDecodeError as error:
        raise RegistryError(
            f"{uri} answered {path} with {answer.text[:80]!r}, which is not what MLflow answers",
            "check MLFLOW_TRACKING_URI",
        ) from error


def _version(found: dict[str, Any]) -> ModelVersion:
    tags = {t["key"]: t["value"] for t in found.get("tags", [])}
    return ModelVersion(
        found["name"],
        found["version"],
        found.get("run_id", ""),
        found.get("source", "").removeprefix("models:/"),
        tags,
    )


def by_alias(model: str, alias: str = "champion") -> ModelVersion | None:
    """The version an alias points at; None where there is none.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    path = "/api/2.0/mlflow/registered-models/alias"
    answer = _call("GET", path, params={"name": model, "alias": alias}, missing_ok=True)
    return _version(answer["model_version"]) if answer else None


def champion(model: ModelSpec) -> ModelVersion | None:
    """The model's champion; None before the first promotion."""
    return by_alias(model.name)


def version(model: str, number: str) -> ModelVersion:
    """One version.

    Raises:
        RegistryError: there is no such version.
    """
    path = "/api/2.0/mlflow/model-versions/get"
    answer = _call("GET", path, params={"name": model, "version": number}, missing_ok=True)
    if answer is None:
        raise RegistryError(f"there is no version {number}", "see the model's page in MLflow", model=model)
    return _version(answer["model_version"])


def set_alias(model: str, number: str, alias: str) -> None:
    """Point an alias at a version. Only promotion and rollback do this for ``champion``.

    Raises:
        RegistryError: MLflow cannot be reached, or there is no such version.
    """
    path = "/api/2.0/mlflow/registered-models/alias"
    body = {"name": model, "alias": alias, "version": number}
    try:
        _call("POST", path, json=body)
    except RegistryError:
        # MLflow looks for the alias and then inserts it (`session.merge`): of two who set a new one at once, the later
        # is refused by the table's key. The alias is there by now, and can be moved.
        if by_alias(model, alias) is None:
            raise
        _call("POST", path, json=body)


def artifact(run_id: str, name: str) -> Path:
    """A file that training left beside the model (``reference.json``, …), downloaded once.

    Raises:
        ArtifactError: the run has no such file.
    """
    target = settings().home / "cache" / "runs" / run_id / name
    return _download("/get-artifact", {"run_uuid": run_id, "path": f"{ARTIFACT_FOLDER}/{name}"}, target)


def load_json_artifact(found: ModelVersion, name: str) -> Any:
    """The content of a JSON file that training left beside the model.

    Raises:
        ArtifactError: the run has no such file, or it is damaged.
    """
    path = artifact(found.run_id, name)
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        path.unlink(missing_ok=True)  # so that the next run fetches it anew
        raise ArtifactError(
            f"{name} of version {found.version} is damaged: {error}",
            "restore MLflow's artifact store and run this again, or train anew",
            model=found.name,
        ) from error


def spec(found: ModelVersion) -> ModelSpec:
    """The spec that a version was trained from: its own features score it, not today's folder."""
    bundle = load_json_artifact(found, "spec.json")
    # Who was told is no part of the model, and an earlier release may have said it in another form.
    bundle["model"].pop("alerts", None)
    return ModelSpec.from_bundle(bundle)


def load(found: ModelVersion, *, fresh: bool = False, threads: int | None = None) -> TrainedModel:
    """The version's model; its file is checked against the digest that was registered with it, at each load.

    Args:
        fresh: fetch the file from MLflow even where this machine has a copy.
        threads: how many predict together; ``PERENNIAL_THREADS`` when not given.

    Raises:
        ArtifactError: the file is missing, or is not what was registered.
    """
    from perennial.modeling import trained_model

    if not found.digest:
        raise ArtifactError(
            f"version {found.version} has no digest: Perennial did not register it",
            "register models by training them",
            model=found.name,
        )
    target = settings().home / "cache" / "models" / f"{found.digest}.ubj"
    cached = target.is_file() and not fresh
    path = f"/ajax-api/2.0/mlflow/logged-models/{found.model_id}/artifacts/files"
    query = {"artifact_file_path": "model.ubj"}
    _download(path, query, target, again=fresh)
    try:
        return trained_model.load(
            target, found.digest, threads=threads or settings().threads, name=found.name
        )
    except ArtifactError:
        if not cached:
            target.unlink(missing_ok=True)  # the next load fetches it anew
            raise
    _download(path, query, target, again=True)
    return trained_model.load(target, found.digest, threads=threads or settings().threads, name=found.name)


def _download(path: str, query: dict[str, str], target: Path, *, again: bool = False) -> Path:
    """Fetch a file that is not there yet, or ``again``; others may read it meanwhile, so it is replaced whole."""
    import requests

    if target.is_file() and not again:
        return target
    answer = _call("GET", path, params=query, missing_ok=True, stream=True)
    if answer is None:
        raise ArtifactError(
            f"MLflow has no artifact {'/'.join(query.values())}",
            "restore MLflow's artifact store, or train the model anew",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            for block in answer.iter_content(1 << 20):
                file.write(block)
        temporary.replace(target)
    except requests.RequestException as error:
        raise RegistryError(
            f"MLflow stopped in the midst of {path} ({type(error).__name__})",
            "see MLflow's log; then run this again",
        ) from error
    except OSError as error:
        raise StorageError(
            f"{target} cannot be written: {error}", "check that the disk has room; then run this again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return target
