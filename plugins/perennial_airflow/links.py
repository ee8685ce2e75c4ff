"""Addresses of reports in the lake, as the UI serves them."""

from __future__ import annotations

from urllib.parse import quote

from perennial.settings import settings

PREFIX = "/perennial"


def report_url(uri: str) -> str:
    """Address of a report, given its place in the lake; empty for anything that is not a report of this lake."""
    root = f"{settings().lake}/reports/"
    if not uri.startswith(root):
        return ""
    from airflow.sdk.configuration import conf

    base = (conf.get("api", "base_url", fallback="") or "").rstrip("/")
    return f"{base}{PREFIX}/reports/{quote(uri.removeprefix(root))}"
