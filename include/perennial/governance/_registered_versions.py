"""Versions of a model in MLflow: which have an alias, and the deletion of those that nothing uses."""

from __future__ import annotations

import json

from perennial.modeling import mlflow_api
from perennial.modeling.registry import ModelVersion

_MODEL_PATH = "/api/2.0/mlflow/registered-models/get"


def aliased(model: str) -> set[str]:
    """Numbers of the versions that an alias points to, whoever set it.

    Raises:
        RegistryError: MLflow cannot be reached.
    """
    answer = mlflow_api.call("GET", _MODEL_PATH, params={"name": model}, missing_ok=True)
    if answer is None:
        return set()
    try:
        return {str(alias["version"]) for alias in answer["registered_model"].get("aliases", [])}
    except (KeyError, TypeError, AttributeError):
        raise mlflow_api.unexpected_answer(_MODEL_PATH, json.dumps(answer)) from None


def delete(version: ModelVersion) -> None:
    """Delete a version, and its run; ``mlflow gc`` then frees the space of its files.

    Raises:
        RegistryError: MLflow cannot be reached, or refuses it.
    """
    body = {"name": version.name, "version": version.version}
    mlflow_api.call("DELETE", "/api/2.0/mlflow/model-versions/delete", json=body, missing_ok=True)
    if version.run_id:
        mlflow_api.call(
            "POST", "/api/2.0/mlflow/runs/delete", json={"run_id": version.run_id}, missing_ok=True
        )
