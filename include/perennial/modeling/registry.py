"""The model registry in MLflow: versions, the aliases ``champion`` and ``challenger``, artifacts.

Versions are read, and aliases set, through MLflow's REST API, so that light tasks need not import MLflow. Only
`perennial.training.tracking`, which registers models, imports it.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.core.dates import DateRange
from perennial.core.errors import ArtifactError, RegistryError, StorageError
from perennial.core.settings import settings
from perennial.spec.model_spec import ModelSpec

if TYPE_CHECKING:
    from perennial.modeling.trained_model import TrainedModel

#: Folder in a run's artifacts for the files that training stores with the model.
ARTIFACT_FOLDER = "perennial"
#: Seconds that one request to MLflow may take.
TIMEOUT = 30


@dataclass(frozen=True)
class ModelVersion:
    """One registered version.

    Attributes:
        name: name of the model.
        version: number of the version, as text.
        run_id: MLflow run that trained it.
        model_id: MLflow's id of the logged model.
        tags: tags of the version, by name.
    """

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
        """The partition date as of which it was trained and evaluated."""
        return self.tags.get("as_of", "")

    @property
    def trained_range(self) -> DateRange:
        """Partitions that it was fitted on, those for early stopping included."""
        return DateRange.parse(self.tags["trained_range"])

    @property
    def holdout_range(self) -> DateRange:
        """Partitions that it was evaluated on."""
        return DateRange.parse(self.tags["holdout_range"])


def request_credentials() -> dict[str, Any]:
    """Credentials for MLflow, from MLflow's environment variables, as arguments of ``requests.request``."""
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
            method, f"{uri}{path}", timeout=TIMEOUT, stream=stream, **request_credentials(), **request
        )
    except requests.RequestException as error:
        raise RegistryError(
            f"MLflow at {uri} does not answer ({type(error).__name__})",
            "start it (locally: make run), or set MLFLOW_TRACKING_URI; then run this again",
        ) from error
    # MLflow answers 400 for a model without the alias, and 404 for an unknown model. A 404 from another server or a
    # proxy must not be mistaken for "there is no champion".
    if missing_ok and (
        (answer.status_code == 404 and (stream or "RESOURCE_DOES_NOT_EXIST" in answer.text))
        or (answer.status_code == 400 and "not found" in answer.text)
    ):
        return None
    if not answer.ok:
        hint = (
            "add this host to MLflow's --allowed-hosts" if answer.status_code == 403 else "see MLflow's log"
        )
        raise RegistryError(
            f"MLflow at {uri} answered {answer.status_code} to {path}: {answer.text[:200]}", hint
        )
    try:
        return answer if stream else answer.json()
    except requests.JSONDecodeError as error:
        raise RegistryError(
            f"{uri} answered {path} with {answer.text[:80]!r}, which is not a response of MLflow",
            "check MLFLOW_TRACKING_URI",
        ) from error


def _parse_version(answer: dict[str, Any]) -> ModelVersion:
    tags = {t["key"]: t["value"] for t in answer.get("tags", [])}
    return ModelVersion(
        answer["name"],
        answer["version"],
        answer.get("run_id", ""),
        answer.get("source", "").removeprefix("models:/"),
        tags,
    )


def get_version_by_alias(model: str, alias: str = "champion") -> ModelVersion | None:
    """Get the version that an alias points to; None if there is none.

    Args:
        model: name of the model.
        alias: ``champion`` or ``challenger``.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    path = "/api/2.0/mlflow/registered-models/alias"
    answer = _call("GET", path, params={"name": model, "alias": alias}, missing_ok=True)
    return _parse_version(answer["model_version"]) if answer else None


def get_champion(spec: ModelSpec) -> ModelVersion | None:
    """Get a model's champion; None before the first promotion.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    return get_version_by_alias(spec.name)


def get_version(model: str, number: str) -> ModelVersion:
    """Get one version of a model.

    Args:
        model: name of the model.
        number: number of the version.

    Raises:
        RegistryError: there is no such version, or MLflow cannot be reached.
    """
    path = "/api/2.0/mlflow/model-versions/get"
    answer = _call("GET", path, params={"name": model, "version": number}, missing_ok=True)
    if answer is None:
        raise RegistryError(f"there is no version {number}", "see the model's page in MLflow", model=model)
    return _parse_version(answer["model_version"])


def set_alias(model: str, number: str, alias: str) -> None:
    """Point an alias to a version; ``champion`` is set only by promotion and rollback.

    Args:
        model: name of the model.
        number: number of the version.
        alias: ``champion`` or ``challenger``.

    Raises:
        RegistryError: MLflow cannot be reached, or there is no such version.
    """
    path = "/api/2.0/mlflow/registered-models/alias"
    body = {"name": model, "alias": alias, "version": number}
    try:
        _call("POST", path, json=body)
    except RegistryError:
        # MLflow reads the alias and then inserts it (`session.merge`). If two callers set a new alias at the same time,
        # the second insert violates the table's key; the alias exists by then and can be changed.
        if get_version_by_alias(model, alias) is None:
            raise
        _call("POST", path, json=body)


def download_artifact(run_id: str, name: str) -> Path:
    """Download a file that training stored with the model (``reference.json``, …), once.

    Args:
        run_id: MLflow run that trained the model.
        name: name of the file.

    Returns:
        The file in this machine's cache.

    Raises:
        ArtifactError: the run has no such file.
    """
    target = settings().home / "cache" / "runs" / run_id / name
    return _download("/get-artifact", {"run_uuid": run_id, "path": f"{ARTIFACT_FOLDER}/{name}"}, target)


def load_json_artifact(version: ModelVersion, name: str) -> Any:
    """Load a JSON file that training stored with the model.

    Args:
        version: the version.
        name: name of the file.

    Raises:
        ArtifactError: the run has no such file, or it is damaged.
    """
    path = download_artifact(version.run_id, name)
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        path.unlink(missing_ok=True)  # the next run downloads it again
        raise ArtifactError(
            f"{name} of version {version.version} is damaged: {error}",
            "restore MLflow's artifact store and run this again, or train the model again",
            model=version.name,
        ) from error


def load_spec(version: ModelVersion) -> ModelSpec:
    """Load the spec that a version was trained with, whose features scoring uses.

    Raises:
        ArtifactError: the run has no such file, or it is damaged.
    """
    bundle = load_json_artifact(version, "spec.json")
    # Alert channels are not part of the model, and an earlier release may have stored them in another format.
    bundle["model"].pop("alerts", None)
    return ModelSpec.from_bundle(bundle)


def load_model(version: ModelVersion, *, fresh: bool = False, threads: int | None = None) -> TrainedModel:
    """Load a version's model, and check its file against the registered digest.

    Args:
        version: the version.
        fresh: download the file from MLflow even if this machine has a copy.
        threads: threads for prediction; ``PERENNIAL_THREADS`` when not given.

    Raises:
        ArtifactError: the file is missing, or is not what was registered.
    """
    from perennial.modeling import trained_model

    if not version.digest:
        raise ArtifactError(
            f"version {version.version} has no digest: Perennial did not register it",
            "register models with the train step",
            model=version.name,
        )
    target = settings().home / "cache" / "models" / f"{version.digest}.ubj"
    cached = target.is_file() and not fresh
    path = f"/ajax-api/2.0/mlflow/logged-models/{version.model_id}/artifacts/files"
    query = {"artifact_file_path": "model.ubj"}
    _download(path, query, target, again=fresh)
    try:
        return trained_model.load_model_file(
            target, version.digest, threads=threads or settings().threads, name=version.name
        )
    except ArtifactError:
        if not cached:
            target.unlink(missing_ok=True)  # the next load downloads it again
            raise
    _download(path, query, target, again=True)
    return trained_model.load_model_file(
        target, version.digest, threads=threads or settings().threads, name=version.name
    )


def _download(path: str, query: dict[str, str], target: Path, *, again: bool = False) -> Path:
    """Download a file unless it exists; with ``again``, replace it.

    The file is replaced atomically, because other processes may be reading it.
    """
    import requests

    if target.is_file() and not again:
        return target
    answer = _call("GET", path, params=query, missing_ok=True, stream=True)
    if answer is None:
        raise ArtifactError(
            f"MLflow has no artifact {'/'.join(query.values())}",
            "restore MLflow's artifact store, or train the model again",
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
            f"the download of {path} from MLflow broke off ({type(error).__name__})",
            "see MLflow's log; then run this again",
        ) from error
    except OSError as error:
        raise StorageError(
            f"{target} cannot be written: {error}", "check that the disk has room; then run this again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return target
