"""Serves reports from the lake to users who are logged in to Airflow.

A report shows values of the data, so its page is not trusted: the browser opens it in a sandbox without an origin
(scripts draw the charts, but reach neither Airflow's session nor the network).
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import FastAPI, HTTPException, Response

from perennial.core.errors import PerennialError
from perennial.core.settings import settings
from perennial.storage import object_store
from perennial_airflow.web.links import PREFIX as PREFIX

#: Files that are served, by suffix, with their media type.
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": (
        "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob: data:; "
        "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; worker-src blob:; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-cache",
}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=-]{0,127}")


def create_app() -> FastAPI:
    """The application that is mounted under `PREFIX`."""
    app = FastAPI(title="Perennial reports", docs_url=None, redoc_url=None, openapi_url=None)
    app.get("/reports/{model}/{path:path}")(report)
    return app


def report(model: str, path: str, user: GetUserDep) -> Response:
    """Answer a request for one file of a model's reports.

    Args:
        model: name of the model.
        path: path below the model's reports.
        user: who is logged in; must be allowed to see the model's DAGs.
    """
    parts = PurePosixPath(f"{model}/{path}")
    if not is_plain_path(f"{model}/{path}") or parts.suffix not in MEDIA_TYPES:
        raise HTTPException(404, "There is no such report.")
    details = DagDetails(id=f"{model}.monitor")
    if not get_auth_manager().is_authorized_dag(method="GET", details=details, user=user):
        raise HTTPException(403, "You are not allowed to see the reports of this model.")
    try:
        content = read_report(f"{model}/{path}")
    except FileNotFoundError:
        raise HTTPException(404, "There is no such report. Was the lake moved or cleaned?") from None
    except PerennialError as error:
        raise HTTPException(503, f"The lake cannot be read: {error.remedy}") from None
    return Response(content, media_type=MEDIA_TYPES[parts.suffix], headers=HEADERS)


def is_plain_path(path: str) -> bool:
    """Whether every part of ``path`` is a plain name: no way up, no hidden file."""
    parts = path.split("/")
    return 2 <= len(parts) <= 8 and all(_NAME.fullmatch(p) for p in parts)


def read_report(path: str) -> str:
    """Read one report, by its path below ``reports`` of the lake.

    Raises:
        FileNotFoundError: there is none, or it is a link that leads out of the reports.
    """
    root = f"{settings().lake}/reports"
    if not object_store.is_remote(root):
        file = Path(root, path).resolve()
        if not file.is_relative_to(Path(root).resolve()) or not file.is_file():
            raise FileNotFoundError(path)
    return object_store.read_text(f"{root}/{path}")
