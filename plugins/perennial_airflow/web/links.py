"""Addresses of pages of the UI, and of the reports that `web.reports` serves from the lake."""

from __future__ import annotations

from urllib.parse import quote

from perennial.core.settings import settings

#: Path under which the API server mounts the report pages.
PREFIX = "/perennial"


def ui_url(path: str) -> str:
    """Address of a page of the UI; the path alone where ``[api] base_url`` is not set."""
    from airflow.sdk.configuration import conf

    return f"{(conf.get('api', 'base_url', fallback='') or '').rstrip('/')}{path}"


def report_url(uri: str) -> str:
    """Address of a report of the lake, by its URI; empty for any other URI."""
    root = f"{settings().lake}/reports/"
    if not uri.startswith(root):
        return ""
    return ui_url(f"{PREFIX}/reports/{quote(uri.removeprefix(root))}")
