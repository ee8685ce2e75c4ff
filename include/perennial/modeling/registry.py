"""The model registry in MLflow: versions, the aliases ``champion`` and ``challenger``, artifacts.

Reads and alias moves go over MLflow's REST API, so that light tasks need not import MLflow. Only
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

#: Folder of a run's artifacts that holds what training stores beside the model.
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
    """The version that an alias points at; None where there is none.

    Args:
        model: name of the model.
        alias: ``champion`` or ``challenger``.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    path = "/api/2.0/mlflow/registered-models/alias"
    answer = _call("GET", path, params={"name": model, "alias": alias}, missing_ok=True)
    return _parse_version(answer["model_version"]) if answer else None


def get_champion(model: ModelSpec) -> ModelVersion | None:
    """The model's champion; None before the first promotion.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    return get_version_by_alias(model.name)


def get_version(model: str, number: str) -> ModelVersion:
    """One version of a model.

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
    """Point an alias at a version. Only promotion and rollback do this for ``champion``.

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
        # MLflow reads the alias and then inserts it (`session.merge`): of two callers that set a new alias at once,
        # the table's key refuses the later. The alias exists by then and can be moved.
        if get_version_by_alias(model, alias) is None:
            raise
        _call("POST", path, json=body)


def download_artifact(run_id: str, name: str) -> Path:
    """A file that training stored beside the model (``reference.json``, …), downloaded once.

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
    """The content of a JSON file that training stored beside the model.

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
    """The spec that a version was trained with; scoring uses its features, not those of today's folder.

    Raises:
        ArtifactError: the run has no such file, or it is damaged.
    """
    bundle = load_json_artifact(version, "spec.json")
    # Alert channels are no part of the model, and an earlier release may have written them in another form.
    bundle["model"].pop("alerts", None)
    return ModelSpec.from_bundle(bundle)


def load_model(version: ModelVersion, *, fresh: bool = False, threads: int | None = None) -> TrainedModel:
    """Load a version's model, after its file has been checked against the registered digest.

    Args:
        version: the version.
        fresh: download the file from MLflow even where this machine has a copy.
        threads: threads that predict together; ``PERENNIAL_THREADS`` when not given.

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
    """Download a file that is not there yet, or ``again``.

    Other processes may read the file meanwhile, so it is replaced as a whole.
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
