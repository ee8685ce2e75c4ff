"""The signature of a version, stored with its other files in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from perennial.core import unexpected_errors
from perennial.core.errors import PerennialError
from perennial.core.settings import settings
from perennial.core.signing_keys import SIGNING_KEY, signing_key
from perennial.modeling import registry
from perennial.modeling.registry import ModelVersion
from perennial.modeling.signing import versions
from perennial.storage import leftovers

if TYPE_CHECKING:
    from mlflow import MlflowClient


def store(
    client: MlflowClient, model: str, run_id: str, digests: Mapping[str, str], recorded_at: str = ""
) -> None:
    """Sign the files of a version, and store the signature with them; nothing happens without a key.

    Args:
        client: MLflow's client.
        model: name of the model.
        run_id: MLflow run that trains it.
        digests: SHA-256 of each of its files, by name.
        recorded_at: when the ledger recorded its training; empty: that is being done.

    Raises:
        PerennialError: the key cannot be used, or is not trusted: nothing was stored.
    """
    bundle = versions.sign(model, run_id, digests, recorded_at)
    if bundle is None:
        return
    with leftovers.temporary_folder("sign-") as folder:
        path = folder / versions.SIGNATURE_FILE
        path.write_text(bundle, "utf-8")
        client.log_artifact(run_id, str(path), registry.ARTIFACT_FOLDER)


def sign_version(model: str, number: str) -> ModelVersion:
    """Sign a version that is registered, after all its files were compared with the digests in the ledger.

    Args:
        model: name of the model.
        number: number of the version.

    Returns:
        The version.

    Raises:
        PerennialError: no key is configured, or it cannot be used.
        ArtifactError: a file is missing or was changed, or the ledger has no training of the version.
        RegistryError: MLflow cannot be reached, or has no such version.
    """
    if signing_key() is None:
        raise PerennialError(
            f"version {number} cannot be signed: there is no key",
            f"set {SIGNING_KEY} to a private key (docs/governance.md)",
            model=model,
        )
    version = registry.get_recorded_version(model, number)
    record = registry.recorded(version)
    registry.compare_files(version, record.digests)
    import mlflow
    import requests
    from mlflow.exceptions import MlflowException

    try:
        client = mlflow.MlflowClient(settings().mlflow_uri)
        store(client, model, version.run_id, record.digests, record.recorded_at)
    except (MlflowException, requests.RequestException) as error:
        raise unexpected_errors.registry_error_kind(error)(
            f"MLflow did not store the signature ({type(error).__name__})",
            "check that MLflow runs and that its user may write artifacts; then run this again",
            model=model,
        ) from error
    registry.check_signature(version, again=True)
    return version
