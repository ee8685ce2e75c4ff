"""Calls of MLflow's REST API.

They spare light tasks the import of MLflow: only `perennial.training.tracking`, which registers models, has it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from perennial.core import unexpected_errors
from perennial.core.errors import RegistryError, RegistryRequestError
from perennial.core.settings import settings

if TYPE_CHECKING:
    import requests

#: Seconds that one request may take.
TIMEOUT = 30


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


def _remedy_for_status(status: int) -> str:
    """What to do about an answer of MLflow, by its HTTP status."""
    credentials = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    if status == 401:
        return f"set {credentials}"
    if status == 403:
        return (
            f"add this host to MLflow's --allowed-hosts; or give the user of {credentials} access to the model; only "
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
