"""Both UIs in a real browser: what the operator and the data engineer see and do."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from perennial.local_stack import demo
from perennial.local_stack.config import password
from perennial.storage import manifests
from support.live import BROKEN, PLAN, Live

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.live,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not CHROMIUM, reason="no Chromium on PATH: the UIs are not looked at (apt-get install chromium)"
    ),
]
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
         "--disable-component-update"]  # fmt: skip
PATIENCE = 60_000  # milliseconds; a busy machine's first page takes its time


@pytest.fixture
def page(live: Live) -> Iterator[Page]:
    """A browser page, signed in to Airflow as its admin."""
    from playwright.sync_api import sync_playwright

    with live.board() as board:
        demo.run_plans(live.config, (PLAN,), board)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        try:
            page = browser.new_context(viewport={"width": 1500, "height": 950}).new_page()
            page.set_default_timeout(PATIENCE)
            page.goto(f"{live.config.airflow_url}/auth/login")
            page.get_by_label("Username").fill("admin")
            page.locator("input[type=password]").fill(password(live.config))
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url(lambda url: "/auth/" not in url)
            yield page
        finally:
            browser.close()


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
