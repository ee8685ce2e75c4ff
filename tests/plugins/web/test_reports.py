"""Serving reports from the lake: who may see what, and what cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow.api_fastapi.app import init_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.models.revoked_token import RevokedToken
from fastapi import FastAPI
from fastapi.testclient import TestClient

from perennial_airflow.web.links import PREFIX, report_url
from perennial_airflow.web.reports import create_app, is_plain_path

PAGE = "<h1>É</h1><script>draw()</script>"
REPORT_URL = f"{PREFIX}/reports/flight_late/monitor/2013-04-01.html"


@pytest.fixture
def lake(home: Path) -> Path:
    reports = home / "lake" / "reports"
    for name in (
        "flight_late/monitor/2013-04-01.html",
        "flight_late/monitor/.hidden.html",
        "flight_late/x.parquet",
    ):
        (reports / name).parent.mkdir(parents=True, exist_ok=True)
        (reports / name).write_text(PAGE)
    (home / "lake" / "secret.html").write_text("secret")
    (reports / "flight_late" / "link.html").symlink_to(home / "lake" / "secret.html")
    return home / "lake"


def client(role: str | None, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """A browser of somebody with that role; without a role, of somebody who is not logged in."""
    monkeypatch.setattr(RevokedToken, "is_revoked", lambda *_, **__: False)  # it would ask a database
    manager = init_auth_manager()
    app = FastAPI()
    app.mount(PREFIX, create_app())
    headers = {}
    if role is not None:
        token = manager.generate_jwt(SimpleAuthManagerUser(username="somebody", role=role or None))
        headers = {"Authorization": f"Bearer {token}"}
    return TestClient(app, headers=headers, raise_server_exceptions=False)


@pytest.fixture
def viewer(lake: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    with client("VIEWER", monkeypatch) as browser:
        yield browser


def test_a_viewer_sees_a_report_in_a_sandbox(viewer: TestClient) -> None:
    answer = viewer.get(REPORT_URL)
    assert answer.status_code == 200
    assert answer.text == PAGE
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "sandbox allow-scripts;" in policy and "allow-same-origin" not in policy
    assert "default-src 'none'" in policy and "connect-src" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "private" in answer.headers["cache-control"]


def test_nobody_else_does(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    anonymous = client(None, monkeypatch)
    assert anonymous.get(REPORT_URL).status_code == 401
    assert anonymous.get(f"{PREFIX}/reports/flight_late/none.html").status_code == 401
    anonymous.headers["Authorization"] = "Bearer forged"
    assert anonymous.get(REPORT_URL).status_code == 403
    assert client("", monkeypatch).get(REPORT_URL).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "flight_late/../../secret.html", "flight_late/%2e%2e/%2e%2e/secret.html", "flight_late/..%2f..%2fsecret.html",
        "..%2fsecret.html", "%2e%2e/secret.html", "flight_late/%2fetc%2fpasswd.html", "flight_late//etc/x.html",
        "flight_late/..%5c..%5csecret.html", "flight_late/link.html", "flight_late/monitor/.hidden.html",
        "flight_late/x.parquet", "flight_late/monitor", "flight_late/monitor/", "flight_late/none.html",
        "flight_late/a%00.html", "flight_late/" + "a" * 300 + ".html", "flight_late/" + "a/" * 20 + "x.html",
        "flight_late/",
    ],
)  # fmt: skip
def test_nothing_else_can_be_reached(viewer: TestClient, path: str) -> None:
    answer = viewer.get(f"{PREFIX}/reports/{path}")
    assert answer.status_code == 404
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    "path", ["a/../b.html", "a/./b.html", "/a/b.html", "a//b.html", "a/~b.html", "b.html", "a/-b.html", ""]
)
def test_paths_that_are_not_plain(path: str) -> None:
    assert not is_plain_path(path)


def test_nothing_but_reading(viewer: TestClient) -> None:
    assert viewer.post(REPORT_URL).status_code == 405
    assert viewer.get(f"{PREFIX}/openapi.json").status_code == 404


def test_links(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://air.example/flow/")
    assert (
        report_url(f"{lake}/reports/flight_late/monitor/2013-04-01.html")
        == f"https://air.example/flow{REPORT_URL}"
    )
    assert report_url(f"{lake}/reports/flight_late/a b.html").endswith("/a%20b.html")
    for elsewhere in ("", "/etc/passwd", f"{lake}/published/x.html", "javascript:alert(1)"):
        assert report_url(elsewhere) == ""


def test_a_link_to_a_report_is_served(
    viewer: TestClient, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://testserver")
    assert viewer.get(report_url(f"{lake}/reports/flight_late/monitor/2013-04-01.html")).text == PAGE
