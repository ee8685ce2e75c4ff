"""A link to one of our pages, opened in a browser that is not logged in."""

from __future__ import annotations

import pytest
from airflow.api_fastapi.app import init_auth_manager
from airflow.api_fastapi.core_api.security import is_safe_url
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient

from perennial_airflow.plugin import PerennialPlugin
from perennial_airflow.web.links import PREFIX

PAGE = f"{PREFIX}/reports/flight_late/monitor/2013-04-01.html?start=a%26b"
BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
def anonymous(monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """A client of a server that knows nobody."""
    init_auth_manager()
    app = FastAPI()

    @app.get("/{path:path}")
    def refuse(path: str) -> None:
        raise HTTPException(401, "Not authenticated")

    middleware = PerennialPlugin().fastapi_root_middlewares[-1]
    app.add_middleware(middleware["middleware"], *middleware["args"], **middleware["kwargs"])
    return TestClient(app, follow_redirects=False)


def test_a_browser_is_led_to_the_login_and_back(anonymous: TestClient) -> None:
    answer = anonymous.get(PAGE, headers=BROWSER)
    assert answer.status_code == 302
    assert answer.headers["location"].startswith("/api/v2/auth/login?next=")
    target = answer.next_request
    assert target is not None and target.url.params["next"] == PAGE
    assert is_safe_url(PAGE)


@pytest.mark.parametrize("headers", [{"accept": "application/json"}, {"accept": "*/*"}, {}], ids=str)
def test_programs_are_refused_as_before(anonymous: TestClient, headers: dict[str, str]) -> None:
    answer = anonymous.get(PAGE, headers=headers)
    assert (answer.status_code, answer.json()) == (401, {"detail": "Not authenticated"})


def test_other_pages_and_what_is_no_reading_are_left_alone(anonymous: TestClient) -> None:
    assert anonymous.get("/api/v2/dags", headers=BROWSER).status_code == 401
    assert anonymous.post(PAGE, headers=BROWSER).status_code == 405
