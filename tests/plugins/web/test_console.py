"""The console inside Airflow: who may see what, what runs, and which reports cannot be reached."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from airflow.api_fastapi.app import init_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.models.revoked_token import RevokedToken
from fastapi import FastAPI
from fastapi.testclient import TestClient

from perennial.console.report_files import is_plain_path
from perennial.spec.model_spec import ModelSpec
from perennial.status import refresh
from perennial_airflow.web import console
from perennial_airflow.web.console import create_app
from perennial_airflow.web.links import PREFIX, external_views, report_url, reports_url

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


def test_the_list_names_every_page_and_leads_to_it(
    viewer: TestClient, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = lake / "reports" / "flight_late"
    for name in ("validation/2013-04-02.html", "validation/2013-04-03.html", "validation/2013-04-03.json",
                 "profile/2013-03-30..2013-04-02.html"):  # fmt: skip
        (reports / name).parent.mkdir(exist_ok=True)
        (reports / name).write_text(PAGE)
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://testserver")

    def linked(*of_range: str) -> list[str]:
        answer = viewer.get(reports_url("flight_late", *of_range))
        assert answer.status_code == 200
        linked = re.findall(r'href="([^"]+/reports/[^"]+)"', answer.text)
        addresses = [str(answer.url.join(address)) for address in linked]
        assert {viewer.get(address).text for address in addresses} <= {PAGE}
        return [address.partition("flight_late/")[2] for address in addresses]

    assert linked() == [
        "monitor/2013-04-01.html", "profile/2013-03-30..2013-04-02.html",
        "validation/2013-04-03.html", "validation/2013-04-02.html",
    ]  # fmt: skip
    assert linked("2013-04-02") == ["profile/2013-03-30..2013-04-02.html", "validation/2013-04-02.html"]
    assert linked("2013-04-03", "2013-04-09") == ["validation/2013-04-03.html"]
    assert "There are none." in viewer.get(f"{PREFIX}/reports/flight_delay").text


def test_the_list_is_for_those_who_may_see_the_model(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"{PREFIX}/reports/flight_late"
    assert client(None, monkeypatch).get(address).status_code == 401
    assert client("", monkeypatch).get(address).status_code == 403
    with client("VIEWER", monkeypatch) as viewer:
        assert viewer.get(f"{PREFIX}/reports/%2e%2e").status_code == 404
        assert viewer.get(f"{PREFIX}/reports/<script>").status_code == 404


# --- pages about models


@pytest.fixture
def status(home: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A model with a status record; Airflow's database, of which there is none here, has no runs."""
    refresh.refresh(spec)
    monkeypatch.setattr(console.AirflowHost, "running", lambda self, models: {})
    return spec


PAGES = ("/", "/models/flight_late", "/models/flight_late.json", "/dags/flight_late.score", "/models.json")


@pytest.mark.parametrize("role", ["VIEWER", "USER", "OP", "ADMIN"])
def test_each_role_sees_the_models(status: ModelSpec, monkeypatch: pytest.MonkeyPatch, role: str) -> None:
    with client(role, monkeypatch) as browser:
        for path in PAGES:
            answer = browser.get(f"{PREFIX}{path}")
            assert answer.status_code == 200 and "flight_late" in answer.text
        assert str(browser.get(f"{PREFIX}/dags/flight_late.score").url).endswith(
            f"{PREFIX}/models/flight_late"
        )
        page = browser.get(f"{PREFIX}/models/flight_late").text
        assert 'href="/dags/flight_late.train" target="_top"' in page


def test_nobody_sees_models_without_a_login_or_a_role(
    status: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    anonymous, without_role = client(None, monkeypatch), client("", monkeypatch)
    for path in PAGES:
        answer = anonymous.get(f"{PREFIX}{path}", headers={"Accept": "application/json"})
        assert answer.status_code == 401 and "flight_late" not in answer.text
    for path in PAGES[1:4]:
        assert without_role.get(f"{PREFIX}{path}").status_code == 403
    assert without_role.get(f"{PREFIX}/models.json").json()["models"] == []


def test_who_is_not_logged_in_is_led_to_the_login_page_and_back(
    status: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://testserver")
    address = f"{PREFIX}/models/flight_late?a=b"
    answer = client(None, monkeypatch).get(address, headers={"Accept": "text/html"}, follow_redirects=False)
    assert answer.status_code == 302
    login = httpx.URL(answer.headers["location"])
    assert "/login" in login.path and login.params["next"] == f"http://testserver{address}"


def test_airflow_shows_the_console_in_its_navigation_and_on_dags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://air.example/flow/")
    views = {view["destination"]: view for view in external_views()}
    assert views["nav"]["href"] == f"/flow{PREFIX}/"
    assert views["dag"]["href"] == f"/flow{PREFIX}/dags/{{DAG_ID}}"
