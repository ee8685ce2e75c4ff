"""Addresses of pages of Airflow's UI, and of the console, which `web.console` serves."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from perennial.core.settings import settings

#: Path under which the API server mounts the console.
PREFIX = "/perennial"


def ui_url(path: str) -> str:
    """Address of a page of the UI; the path alone where ``[api] base_url`` is not set."""
    from airflow.sdk.configuration import conf

    return f"{(conf.get('api', 'base_url', fallback='') or '').rstrip('/')}{path}"


def ui_path(path: str) -> str:
    """Address of a page of the UI on the same server, whatever the name by which the browser knows the server."""
    return f"{urlsplit(ui_url('')).path}{path}"


def external_views() -> list[dict[str, Any]]:
    """What Airflow's UI shows of the console: the entry Models of its navigation, and tabs.

    A DAG has the tab Model; a run, and a task of a run, has the tab Report, with what the run did.
    """
    icons = {
        "icon": ui_path(f"{PREFIX}/static/models.svg"),
        "icon_dark_mode": ui_path(f"{PREFIX}/static/models-dark.svg"),
    }
    nav = {"destination": "nav", "url_route": "models", "nav_top_level": True}
    dag = ui_path(f"{PREFIX}/dags/{{DAG_ID}}")
    run = {"name": "Report", "href": f"{dag}/runs/{{RUN_ID}}", **icons}
    return [
        {"name": "Models", "href": ui_path(f"{PREFIX}/"), **nav, **icons},
        {"name": "Model", "href": dag, "destination": "dag", "url_route": "model", **icons},
        {**run, "destination": "dag_run", "url_route": "report"},
        {**run, "destination": "task_instance", "url_route": "run_report"},
    ]


def run_url(dag_id: str, run_id: str) -> str:
    """Address of a run's page in Airflow, for pages elsewhere; empty where ``[api] base_url`` is not set."""
    return absolute(ui_url(f"/dags/{quote(dag_id)}/runs/{quote(run_id)}"))


def absolute(address: str) -> str:
    """An address as messages need it; empty if it is a path alone, because ``[api] base_url`` is not set."""
    return "" if address.startswith("/") else address


def model_url(model: str) -> str:
    """Address of a model's page in the console."""
    return ui_url(f"{PREFIX}/models/{quote(model)}")


def version_url(model: str, version: str) -> str:
    """Address of a version's page in the console."""
    return f"{model_url(model)}/versions/{quote(version)}"


def addresses(model: str, report: str = "") -> dict[str, str]:
    """Where to look, for a message that people read outside Airflow; the pages ask for a login where there is none.

    Args:
        model: name of the model.
        report: URI or address of a report; empty if there is none.

    Returns:
        By name, ``report`` and ``model page``; a report that has no page is named by its URI.
    """
    page = report_url(report)
    pages = {"report": absolute(page) if page else report, "model page": absolute(model_url(model))}
    return {name: address for name, address in pages.items() if address}


def pod_url(namespace: str, name: str) -> str:
    """Address of a pod in the console of the cluster; empty where ``PERENNIAL_POD_URL`` does not name one.

    Args:
        namespace: of the pod.
        name: of the pod.
    """
    template = os.environ.get("PERENNIAL_POD_URL", "").strip()
    return template.replace("{namespace}", quote(namespace)).replace("{name}", quote(name))


def report_url(uri: str) -> str:
    """Address of a report of the lake by its URI, and the list of a model's for a folder; empty for any other URI."""
    root = f"{settings().lake}/reports/"
    if not uri.startswith(root):
        return ""
    if not PurePosixPath(uri).suffix:
        return reports_url(uri.removeprefix(root).split("/")[0])
    return ui_url(f"{PREFIX}/reports/{quote(uri.removeprefix(root))}")


def reports_url(model: str, start: str | None = None, end: str | None = None) -> str:
    """Address of the list of a model's reports, of those that concern some partitions where a range is given."""
    query = urlencode({"start": start, "end": end or start}) if start else ""
    return ui_url(f"{PREFIX}/reports/{quote(model)}{'?' * bool(query)}{query}")
