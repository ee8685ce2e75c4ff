"""Addresses of the UI's pages, and of reports in the lake as the UI serves them."""

from __future__ import annotations

from urllib.parse import quote

from perennial.core.settings import settings

PREFIX = "/perennial"


def page(path: str) -> str:
    """Address of a page of the UI; the path alone where Airflow does not know its own address."""
    from airflow.sdk.configuration import conf

    return f"{(conf.get('api', 'base_url', fallback='') or '').rstrip('/')}{path}"


def report_url(uri: str) -> str:
    """Address of a report, given its place in the lake; empty for anything that is not a report of this lake."""
    root = f"{settings().lake}/reports/"
    if not uri.startswith(root):
        return ""
    return page(f"{PREFIX}/reports/{quote(uri.removeprefix(root))}")
