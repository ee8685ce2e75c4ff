"""Pods as the Kubernetes client reads them."""

from __future__ import annotations

import json
from typing import Any

from kubernetes.client import ApiClient, V1Pod


class _Answer:
    def __init__(self, content: Any) -> None:
        self.data = json.dumps(content)


def as_pod(content: dict[str, Any]) -> V1Pod:
    """A pod as the client reads it from the API server."""
    return ApiClient().deserialize(_Answer(content), "V1Pod")
