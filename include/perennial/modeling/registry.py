"""The model registry in MLflow: versions, the aliases ``champion`` and ``challenger``, artifacts.

Nothing in MLflow is believed: a file is loaded only if it has the digest that the ledger recorded at its training and,
where keys are trusted, one of them signed that (`perennial.modeling.signing`). An answer without the expected
shape is an error. The champion is read by `perennial.lifecycle.champion`.

Versions are read, and aliases set, through MLflow's REST API (`perennial.modeling.mlflow_api`).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.core.errors import ArtifactError, RegistryError, RegistryRequestError
from perennial.core.settings import settings
from perennial.modeling import mlflow_api, training_records
from perennial.modeling.mlflow_api import ModelVersion as ModelVersion
from perennial.modeling.mlflow_api import parse_version
from perennial.modeling.signing import versions
from perennial.modeling.training_records import TrainingRecord
from perennial.spec.model_spec import ModelSpec
from perennial.storage import leftovers, object_store, storage_errors

if TYPE_CHECKING:
    from perennial.modeling.trained_model import TrainedModel

#: Folder in a run's artifacts for the files that training stores with the model.
ARTIFACT_FOLDER = "perennial"
_MODEL_PATH = "/api/2.0/mlflow/registered-models/get"


def get_version_by_alias(model: str, alias: str = "champion") -> ModelVersion | None:
    """Get the version that an alias points to; None if there is none.

    Args:
        model: name of the model.
        alias: ``champion`` or ``challenger``.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    path = "/api/2.0/mlflow/registered-models/alias"
    answer = mlflow_api.call("GET", path, params={"name": model, "alias": alias}, missing_ok=True)
    return None if answer is None else parse_version(path, answer, model)


def get_champion(spec: ModelSpec) -> ModelVersion | None:
    """Get the version that MLflow's alias ``champion`` points to; None if there is none.

    Steps use `perennial.lifecycle.champion`, which compares it with the ledger.

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
        RegistryRequestError: there is no such version.
        RegistryError: MLflow cannot be reached.
    """
    version = find_version(model, number)
    if version is None:
        raise RegistryRequestError(
            f"there is no version {number} in MLflow",
            f"see the model's page in MLflow, and perennial ledger {model} for its versions: one that was deleted in "
            "MLflow cannot be used any more",
            model=model,
        )
    return version


def find_version(model: str, number: str) -> ModelVersion | None:
    """Get one version of a model; None if MLflow does not have it.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    path = "/api/2.0/mlflow/model-versions/get"
    answer = None
    if re.fullmatch("[1-9][0-9]*", number):  # MLflow refuses the request otherwise, or reads 007 as 7
        answer = mlflow_api.call("GET", path, params={"name": model, "version": number}, missing_ok=True)
    version = None if answer is None else parse_version(path, answer, model)
    if version is not None and version.version != number:
        raise mlflow_api.unexpected_answer(path, json.dumps(answer))
    return version


def get_recorded_version(model: str, number: str) -> ModelVersion:
    """Get one version of a model, with its run and tags as the ledger recorded them.

    Raises:
        RegistryRequestError: there is no such version.
        RegistryError: MLflow cannot be reached.
        ArtifactError: the ledger has no training of that version.
    """
    return as_recorded(get_version(model, number))


def as_recorded(version: ModelVersion) -> ModelVersion:
    """The version with its tags as the ledger recorded them: those in MLflow can be edited.

    Raises:
        ArtifactError: the ledger has no training of that version.
    """
    record = recorded(version)
    return replace(version, model_id=record.model_id, tags=record.tags)


def recorded(version: ModelVersion) -> TrainingRecord:
    """The ledger's record of the training that made a version.

    Raises:
        ArtifactError: there is none, or it does not list the digests of the version's files.
    """
    record = training_records.find(version.name, version.version, version.run_id)
    if record is None or not record.digest:
        missing = "no training of it" if record is None else "no digests of its files"
        raise ArtifactError(
            f"version {version.version} cannot be checked: the ledger has {missing}",
            "use a version that this lake's ledger has a training of (perennial ledger), or train again with force",
            model=version.name,
        )
    return record


def find_foreign_version(model: str) -> str | None:
    """The number of the latest version, if Perennial did not register it; None otherwise.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    latest = _registered_model(model, "latest_versions")
    versions = [parse_version(_MODEL_PATH, {"model_version": version}, model) for version in latest]
    return next((v.version for v in versions if not is_ours(v)), None)


def model_tags(model: str) -> dict[str, str]:
    """The tags of a registered model, by name; none if it is not registered."""
    tags = _registered_model(model, "tags")
    return {str(t["key"]): str(t.get("value", "")) for t in tags if isinstance(t, dict) and "key" in t}


def set_model_tag(model: str, name: str, value: str) -> None:
    """Set a tag of a registered model; nothing happens if it is not registered.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    body = {"name": model, "key": name, "value": value}
    mlflow_api.call("POST", "/api/2.0/mlflow/registered-models/set-tag", json=body, missing_ok=True)


def aliased(model: str) -> set[str]:
    """Numbers of the versions that an alias points to, whoever set it.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    try:
        return {str(alias["version"]) for alias in _registered_model(model, "aliases")}
    except (KeyError, TypeError):
        raise mlflow_api.unexpected_answer(_MODEL_PATH, "aliases without versions") from None


def _registered_model(model: str, field: str) -> list[Any]:
    """A list that MLflow has of a registered model; empty if it is not registered."""
    answer = mlflow_api.call("GET", _MODEL_PATH, params={"name": model}, missing_ok=True)
    if answer is None:
        return []
    content = answer.get("registered_model")
    if not isinstance(content, dict) or content.get("name") != model:
        raise mlflow_api.unexpected_answer(_MODEL_PATH, json.dumps(answer))
    values = content.get(field, [])
    if not isinstance(values, list):
        raise mlflow_api.unexpected_answer(_MODEL_PATH, json.dumps(answer))
    return values


def is_ours(version: ModelVersion) -> bool:
    """Whether a version has the tags with which training registers one."""
    return {"digest", "spec_digest"} <= set(version.tags)


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
        mlflow_api.call("POST", path, json=body)
    except RegistryError:
        # MLflow reads the alias and then inserts it (`session.merge`). If two callers set a new alias at the same time,
        # the second insert violates the table's key; the alias exists by then and can be changed.
        if get_version_by_alias(model, alias) is None:
            raise
        mlflow_api.call("POST", path, json=body)
    # MLflow's answer is an empty object, which other servers answer as well.
    pointed = get_version_by_alias(model, alias)
    if pointed is None:
        raise RegistryRequestError(
            f"MLflow did not set the alias {alias} to version {number}",
            "check MLFLOW_TRACKING_URI, and see MLflow's log; then run this again",
            model=model,
        )


def remove_alias(model: str, number: str, alias: str) -> None:
    """Remove an alias from a version; nothing happens if it points to another one, or is not set.

    Args:
        model: name of the model.
        number: number of the version.
        alias: ``challenger``: nothing removes ``champion``.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    version = get_version_by_alias(model, alias)
    if version is not None and version.version == number:
        path = "/api/2.0/mlflow/registered-models/alias"
        mlflow_api.call("DELETE", path, json={"name": model, "alias": alias}, missing_ok=True)


def download_artifact(version: ModelVersion, name: str) -> Path:
    """Download a file that training stored with the model (``reference.json``, …), once.

    Args:
        version: the version.
        name: name of the file.

    Returns:
        The file in this machine's cache; its content is what the ledger recorded.

    Raises:
        ArtifactError: the version has no such file, or it is not what was recorded.
    """
    digest = recorded(version).digests.get(name)
    if digest is None:
        raise ArtifactError(
            f"version {version.version} has no {name}",
            "train again: training stores it with the model",
            model=version.name,
        )
    check_signature(version)
    return _download_artifact(version, name, digest)


def has_artifact(version: ModelVersion, name: str) -> bool:
    """Whether training stored a file with the model.

    Raises:
        ArtifactError: the ledger has no training of that version.
    """
    return name in recorded(version).digests


def load_json_artifact(version: ModelVersion, name: str) -> Any:
    """Load a JSON file that training stored with the model.

    Args:
        version: the version.
        name: name of the file.

    Raises:
        ArtifactError: the version has no such file, or it is not what was recorded.
    """
    try:
        return json.loads(download_artifact(version, name).read_text("utf-8"))
    except ValueError as error:
        raise ArtifactError(
            f"{name} of version {version.version} is damaged: {error}",
            "restore MLflow's artifact store, roll back to another version, or train again with force",
            model=version.name,
        ) from error


def load_spec(version: ModelVersion) -> ModelSpec:
    """Load the spec that a version was trained with, whose features scoring uses.

    Raises:
        ArtifactError: the version has no such file, or it is not what was recorded.
    """
    bundle = load_json_artifact(version, "spec.json")
    # Alert channels are not part of the model, and an earlier release may have stored them in another format.
    bundle["model"].pop("alerts", None)
    return ModelSpec.from_bundle(bundle)


def load_model(
    version: ModelVersion, *, fresh: bool = False, threads: int | None = None, digest: str | None = None
) -> TrainedModel:
    """Load a version's model, and check its file against the digest in the ledger.

    Args:
        version: the version.
        fresh: download the file from MLflow even if this machine has a copy.
        threads: threads for prediction; ``PERENNIAL_THREADS`` when not given.
        digest: expected digest of a version whose training is not recorded yet.

    Raises:
        ArtifactError: the file is missing, or is not what was recorded.
    """
    from perennial.modeling import trained_model

    expected = digest or recorded(version).digest
    if digest is None:
        check_signature(version, again=fresh)
    target = _download_model(version, expected, again=fresh)
    return trained_model.load_model_file(
        target, expected, threads=threads or settings().threads, name=version.name
    )


def load_comparable_model(version: ModelVersion, first: str) -> TrainedModel:
    """Load the model that stands for a version in a comparison on past rows.

    A model that was fitted once more with the rows that it had been evaluated on would look too good on them. There the
    model that was evaluated stands for it.

    Args:
        version: the version.
        first: the first partition whose rows are predicted.

    Raises:
        ArtifactError: the file is missing, or is not what was recorded.
    """
    from perennial.modeling import trained_model

    refit, digest = version.refit_range, recorded(version).digests.get(training_records.EVALUATED_MODEL_FILE)
    if refit is None or digest is None or refit.end < first:
        return load_model(version)
    path = download_artifact(version, training_records.EVALUATED_MODEL_FILE)
    return trained_model.load_model_file(path, digest, threads=settings().threads, name=version.name)


def check_files(version: ModelVersion, digests: Mapping[str, str] | None = None) -> None:
    """Download the files of a version, and compare them with their digests and these with its signature.

    Args:
        version: the version.
        digests: SHA-256 of each file, by name; those that the ledger recorded when not given.

    Raises:
        ArtifactError: a file is missing, has another digest, or the signature is refused.
    """
    digests = digests or recorded(version).digests
    compare_files(version, digests)
    check_signature(version, digests, again=True)


def compare_files(version: ModelVersion, digests: Mapping[str, str]) -> None:
    """As `check_files`, without the signature."""
    for name, digest in digests.items():
        if name == training_records.MODEL_FILE:
            _download_model(version, digest, again=True)
        else:
            _download_artifact(version, name, digest, again=True)


def check_signature(
    version: ModelVersion, digests: Mapping[str, str] | None = None, *, again: bool = False
) -> None:
    """Verify the signature of a version, if keys are trusted and unless this machine has done so.

    Args:
        version: the version.
        digests: SHA-256 of each file of a version whose training is not recorded yet.
        again: verify it anew.

    Raises:
        ArtifactError: there is none, or it is refused.
    """
    if digests is None:
        record = recorded(version)
        digests, recorded_at = record.digests, record.recorded_at
    else:
        known = training_records.find(version.name, version.version, version.run_id)
        recorded_at = known.recorded_at if known else ""
    files = versions.SignedFiles(version.name, version.version, version.run_id, digests, recorded_at)
    versions.verify(files, lambda fresh: _download_signature(version, again=fresh), again=again)


def _download_model(version: ModelVersion, digest: str, *, again: bool) -> Path:
    target = settings().home / "cache" / "models" / f"{digest}.ubj"
    path = f"/ajax-api/2.0/mlflow/logged-models/{version.model_id}/artifacts/files"
    query = {"artifact_file_path": training_records.MODEL_FILE}
    return _download(version, path, query, target, digest, again=again)


def _download_artifact(version: ModelVersion, name: str, digest: str, *, again: bool = False) -> Path:
    target = settings().home / "cache" / "runs" / version.run_id / name
    query = {"run_uuid": version.run_id, "path": f"{ARTIFACT_FOLDER}/{name}"}
    return _download(version, "/get-artifact", query, target, digest, again=again)


def _download_signature(version: ModelVersion, *, again: bool = False) -> str | None:
    """The signature of a version, from this machine's cache unless ``again``; None if the version has none."""
    import requests

    target = settings().home / "cache" / "runs" / version.run_id / versions.SIGNATURE_FILE
    if target.is_file() and not again:
        return target.read_text("utf-8", errors="replace")
    query = {"run_uuid": version.run_id, "path": f"{ARTIFACT_FOLDER}/{versions.SIGNATURE_FILE}"}
    answer = mlflow_api.call("GET", "/get-artifact", params=query, missing_ok=True, stream=True)
    if answer is None:
        return None
    try:
        with answer:
            content = answer.content
    except requests.RequestException as error:
        raise RegistryError(
            f"the download of {versions.SIGNATURE_FILE} from MLflow broke off ({type(error).__name__})",
            "see MLflow's log; then run this again",
        ) from error
    temporary = leftovers.temporary_file(target)
    with contextlib.suppress(OSError):  # the copy only spares a download
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(target)
    return bytes(content).decode("utf-8", errors="replace")


def _download(
    version: ModelVersion,
    path: str,
    query: dict[str, str],
    target: Path,
    digest: str,
    *,
    again: bool = False,
) -> Path:
    """Download a file unless this machine has it; with ``again``, download it anyway.

    A file that does not have the digest, here or in MLflow, is never used. The file is replaced atomically, because
    other processes may be reading it.
    """
    import requests

    if target.is_file() and not again and object_store.digest(str(target)) == digest:
        return target
    answer = mlflow_api.call("GET", path, params=query, missing_ok=True, stream=True)
    if answer is None:
        raise ArtifactError(
            f"MLflow has no artifact {'/'.join(query.values())} of version {version.version}",
            "restore MLflow's artifact store, roll back to another version, or train again with force",
            model=version.name,
        )
    temporary = leftovers.temporary_file(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with answer, temporary.open("wb") as file:
            for block in answer.iter_content(1 << 20):
                file.write(block)
        actual = object_store.digest(str(temporary))
        if actual != digest:
            target.unlink(missing_ok=True)
            name = (query.get("path") or query["artifact_file_path"]).rsplit("/", 1)[-1]
            raise ArtifactError(
                f"{name} of version {version.version} in MLflow has digest {actual[:12]}…, the ledger recorded "
                f"{digest[:12]}…: it was changed or damaged",
                "restore MLflow's artifact store; or roll the champion back, or train again with force",
                model=version.name,
            )
        temporary.replace(target)
    except requests.RequestException as error:
        raise RegistryError(
            f"the download of {path} from MLflow broke off ({type(error).__name__})",
            "see MLflow's log; then run this again",
        ) from error
    except OSError as error:
        raise storage_errors.failure(f"{target} cannot be written: {error}", error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return target
