"""Both UIs in a real browser: what the operator and the data engineer see and do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from perennial.local_stack import demo
from perennial.local_stack.config import password
from perennial.storage import manifests
from support.console import chromium
from support.live import BROKEN, PLAN, Live

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.live, *chromium.MARKS]


@pytest.fixture(scope="module")
def window(live_stack: Live) -> Iterator[Page]:
    """A browser page, signed in to Airflow as its admin."""
    with chromium.launched() as browser:
        page = chromium.new_context(browser).new_page()
        page.goto(f"{live_stack.config.airflow_url}/auth/login")
        page.get_by_label("Username").fill("admin")
        page.locator("input[type=password]").fill(password(live_stack.config))
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(lambda url: "/auth/" not in url)
        yield page


@pytest.fixture
def page(live: Live, request: pytest.FixtureRequest) -> Page:
    """The signed-in page, opened once the nights of `PLAN` have passed: it asks Airflow for news all the time."""
    with live.board() as board:
        demo.run_plans(live.config, (PLAN,), board)
    window: Page = request.getfixturevalue("window")
    return window


def test_the_operator_sees_the_models_and_what_is_wrong_with_the_broken_one(page: Page, live: Live) -> None:
    page.goto(f"{live.config.airflow_url}/dags?name_pattern={PLAN.model}")
    for stage in ("data", "train", "score", "monitor", "rollback"):
        page.get_by_text(f"{PLAN.model} · {stage}", exact=True).first.wait_for()
    page.goto(live.config.airflow_url)
    page.get_by_text(re.compile("Import Error", re.IGNORECASE)).first.click()
    page.get_by_text("specs.py").first.click()
    told = page.get_by_text("clairvoyance").first
    told.wait_for()
    assert BROKEN in (told.text_content() or "")


def test_an_engineer_triggers_a_range_from_the_form(page: Page, live: Live) -> None:
    key = f"{PLAN.first}..2024-01-03"
    page.goto(f"{live.config.airflow_url}/dags/{PLAN.model}.score")
    page.get_by_role("button", name="Trigger").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("First partition", exact=False).first.wait_for()
    for name, value in (("start", PLAN.first), ("end", "2024-01-03")):
        dialog.locator(f"[name='element_{name}']").fill(value)
    dialog.get_by_role("button", name=re.compile("Trigger")).last.click()
    page.wait_for_timeout(1000)
    for _ in range(120):
        if all(manifests.read(PLAN.model, "score", d) for d in (PLAN.first, "2024-01-02", "2024-01-03")):
            break
        page.wait_for_timeout(500)
    else:
        pytest.fail(f"{key} was not scored: {page.locator('body').inner_text()[:2000]}")


def test_the_report_of_a_run_opens(page: Page, live: Live) -> None:
    night = "2024-01-13"
    address = f"{live.config.airflow_url}/perennial/reports/{PLAN.model}/validation/{night}.html"
    answer = page.goto(address)
    assert answer is not None and answer.ok, address
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "unique" in page.locator("body").inner_text().lower()


def test_mlflow_shows_the_champion(page: Page, live: Live) -> None:
    page.goto(f"{live.config.mlflow_url}/#/models/{PLAN.model}")
    page.get_by_text("champion").first.wait_for()
