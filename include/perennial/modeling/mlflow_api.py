"""Calls of MLflow's REST API, and versions as it describes them.

They spare light tasks the import of MLflow: only `perennial.training`, which registers models, has it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from perennial.core import unexpected_errors
from perennial.core.errors import RegistryError, RegistryRequestError
from perennial.core.partitions import PartitionRange
from perennial.core.settings import settings

if TYPE_CHECKING:
    import requests

#: Seconds that one request may take.
TIMEOUT = 30
_CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"


def request_credentials() -> dict[str, Any]:
    """Credentials for MLflow, from MLflow's environment variables, as arguments of ``requests.request``."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {
        "auth": (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None,
        "headers": {"Authorization": f"Bearer {token}"} if token else {},
    }


def has_credentials() -> bool:
    """Whether requests go with a user or a token."""
    return bool(os.environ.get("MLFLOW_TRACKING_USERNAME") or os.environ.get("MLFLOW_TRACKING_TOKEN"))


def call(method: str, path: str, *, missing_ok: bool = False, stream: bool = False, **request: Any) -> Any:
    """Call MLflow's REST API.

    Returns:
        The JSON object that it answered; with ``stream`` the response. None with ``missing_ok`` if MLflow says that
        there is no such thing.

    Raises:
        RegistryError: MLflow cannot be reached, refused the request, or something else answered.
    """
    import requests

    uri = settings().mlflow_uri
    try:
        answer = requests.request(
            method, f"{uri}{path}", timeout=TIMEOUT, stream=stream, **request_credentials(), **request
        )
    except requests.RequestException as error:
        raise unexpected_errors.registry_error_kind(error)(
            f"MLflow at {uri} does not answer ({type(error).__name__})",
            "start it (locally: make run), or set MLFLOW_TRACKING_URI; then run this again",
        ) from error
    if missing_ok and (_says_missing(answer) or (stream and answer.status_code == 404)):
        return None
    if not answer.ok:
        content = _json(answer)
        code = str(content.get("error_code", "")) if isinstance(content, dict) else ""
        raise unexpected_errors.registry_error_kind(status=answer.status_code, code=code)(
            f"MLflow at {uri} answered {answer.status_code} to {path}: {answer.text[:200]}",
            _remedy_for_status(answer.status_code),
        )
    if stream:
        return answer
    content = _json(answer)
    if not isinstance(content, dict):
        raise unexpected_answer(path, answer.text)
    return content


def _json(answer: requests.Response) -> Any:
    """The JSON of a response; None if it is none."""
    import requests

    try:
        return answer.json()
    except requests.JSONDecodeError:
        return None


def login_remedy() -> str:
    """What to do if MLflow asks for a log-in."""
    return f"{'correct' if has_credentials() else 'set'} {_CREDENTIALS}"


def _remedy_for_status(status: int) -> str:
    """What to do about an answer of MLflow, by its HTTP status."""
    if status == 401:
        return login_remedy()
    if status == 403:
        return (
            f"add this host to MLflow's --allowed-hosts; or give the user of {_CREDENTIALS} access to the model; only "
            "MLflow's role promotion moves the champion: in Airflow, check connection perennial_mlflow_promotion"
        )
    if status in (404, 405):
        return "check that MLFLOW_TRACKING_URI is the address of MLflow, without a path that its proxy does not have"
    if status >= 500 or status == 429:
        return "run this again; if it fails again, MLflow's own log has the cause"
    return "report it with this text: MLflow refused the request"


def _says_missing(answer: requests.Response) -> bool:
    """Whether MLflow itself says that there is no such model, version or alias.

    It answers 404 for an unknown model or version, and 400 for a model without the alias. A 404 of another server or of
    a proxy must not be mistaken for "there is no champion".
    """
    content = _json(answer) if answer.status_code in (400, 404) else None
    if not isinstance(content, dict):
        return False
    code, message = content.get("error_code"), str(content.get("message", ""))
    return (answer.status_code == 404 and code == "RESOURCE_DOES_NOT_EXIST") or (
        answer.status_code == 400 and code == "INVALID_PARAMETER_VALUE" and "not found" in message
    )


def unexpected_answer(path: str, text: str) -> RegistryError:
    """The error for an answer that does not have the shape of MLflow's."""
    return RegistryRequestError(
        f"{settings().mlflow_uri} answered {path} with {text[:80]!r}, which is not a response of MLflow",
        "check MLFLOW_TRACKING_URI, and what lies between this host and MLflow (proxy, login page)",
    )


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
    def trained_range(self) -> PartitionRange:
        """Partitions that it was fitted on, those for early stopping included."""
        return PartitionRange.parse(self.tags["trained_range"])

    @property
    def refit_range(self) -> PartitionRange | None:
        """Partitions that it was fitted on once more after its evaluation; None if it was not."""
        return PartitionRange.parse(self.tags["refit_range"]) if self.tags.get("refit_range") else None

    @property
    def holdout_range(self) -> PartitionRange:
        """Partitions that it was evaluated on."""
        return PartitionRange.parse(self.tags["holdout_range"])


def parse_version(path: str, content: dict[str, Any], model: str) -> ModelVersion:
    """Read MLflow's description of a version.

    Args:
        path: what was called, for messages.
        content: the answer.
        model: name of the model that was asked for.

    Raises:
        RegistryError: the answer does not describe a version of that model.
    """
    version = content.get("model_version")
    tags = version.get("tags", []) if isinstance(version, dict) else None
    if (
        not isinstance(version, dict)
        or version.get("name") != model
        or not str(version.get("version", "")).isdigit()
        or not all(isinstance(version.get(key, ""), str) for key in ("run_id", "source"))
        or not isinstance(tags, list)
        or not all(isinstance(t, dict) and isinstance(t.get("key"), str) for t in tags)
    ):
        raise unexpected_answer(path, json.dumps(content))
    return ModelVersion(
        model,
        str(version["version"]),
        version.get("run_id", ""),
        version.get("source", "").removeprefix("models:/"),
        {t["key"]: str(t.get("value", "")) for t in tags},
    )
