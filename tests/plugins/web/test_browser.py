"""The console in Airflow's UI, in a real browser: clicks to an answer, an action, tabs, and what it looks like.

Screenshots of what the tests see are in ``.perennial/screenshots``. Those that README shows are written to
``docs/images``, too, where ``PERENNIAL_README_IMAGES`` is set.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import uvicorn

from perennial.core.settings import ROOT
from support import servers
from support.console import chromium
from support.console.world import HOSTILE, KEYS, MISSING, WITH_QUARANTINE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FrameLocator, Locator, Page

pytestmark = chromium.MARKS
MODEL = "drifted"
SCREENSHOTS = ROOT / ".perennial" / "screenshots"
#: Images of ``docs/images`` that README shows, by the screenshot that each is.
README_IMAGES = {
    "question-0": "console-models.png",
    "question-2": "console-model.png",
    "question-5": "console-rollback.png",
}
SignIn = Callable[..., "Page"]


@pytest.fixture(scope="module")
def site(api_server: Any) -> Iterator[str]:
    """Address of the API server."""
    port = servers.free_port()
    server = uvicorn.Server(uvicorn.Config(api_server, "127.0.0.1", port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def sessions() -> dict[str, Any]:
    """The cookies of those who have signed in, by user."""
    return {}


@pytest.fixture
def sign_in(site: str, browser: Browser, sessions: dict[str, Any], server_lake: None) -> Iterator[SignIn]:
    """Opens Airflow's home page as a user: the first time through the login page."""
    file = Path(os.environ["AIRFLOW_HOME"], "simple_auth_manager_passwords.json.generated")
    contexts = []

    def make(user: str, **options: Any) -> Page:
        contexts.append(chromium.new_context(browser, storage_state=sessions.get(user), **options))
        page = contexts[-1].new_page()
        if user in sessions:
            page.goto(site)
            return page
        page.goto(f"{site}/auth/login")
        page.get_by_label("Username").fill(user)
        page.locator("input[type=password]").fill(json.loads(file.read_text())[user])
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(lambda url: "/auth/" not in url)
        sessions[user] = contexts[-1].storage_state()
        return page

    yield make
    for context in contexts:
        context.close()


def screenshot(page: Page, name: str) -> None:
    """Keep what the browser shows."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
    if name in README_IMAGES and os.environ.get("PERENNIAL_README_IMAGES"):
        shutil.copyfile(SCREENSHOTS / f"{name}.png", ROOT / "docs" / "images" / README_IMAGES[name])


class Clicks:
    """A person who begins at Airflow's home page, and counts clicks from there."""

    def __init__(self, page: Page) -> None:
        self._page, self.count = page, 0
        if urlsplit(page.url).path != "/":
            page.get_by_role("link", name="Home", exact=True).first.click()
            page.wait_for_url(lambda url: urlsplit(url).path == "/")
            # or the next click could still go to the page that is about to leave
            page.locator("iframe").first.wait_for(state="detached")

    @property
    def console(self) -> FrameLocator:
        """The frame in which Airflow shows the console."""
        return self._page.frame_locator("iframe").first

    def navigate(self) -> Clicks:
        """Click the entry of Airflow's navigation."""
        self._page.get_by_role("link", name="Models", exact=True).first.click()
        self.count += 1
        return self

    def click(self, *names: str) -> Clicks:
        """Click links of the console, one after the other."""
        for name in names:
            self.console.get_by_role("link", name=name, exact=True).first.click()
            self.count += 1
        return self

    def sees(self, text: str) -> bool:
        """Whether the console shows a text; it may be below what the screen shows."""
        self.console.get_by_text(re.compile(text)).first.wait_for(state="attached")
        return True


#: What operators ask, the links that they click after *Models*, and all that they then read.
QUESTIONS: dict[str, tuple[list[str], list[str]]] = {
    "which model is unwell, and why?": ([], [r"^unwell$", r"incident features .*, since \d"]),
    "who is champion, since when, on which evidence?": (
        [MODEL],
        [r"^version 2$", r"^since \d{4}-\d\d-\d\d$", r"passed its gate", r"log loss 0\.29"],
    ),
    "which partitions are missing, quarantined, unscored?": (
        ["well"],
        [
            r"^due, not published$",
            r"^rows in quarantine$",
            r"^scored$",
            r"Due and not done: \d+ partition",
            MISSING,
        ],
    ),
    "what was quarantined last night, which rows, why?": (
        ["well", "Latest quarantine"],
        [r"5 rows did not pass the checks", r"^x$", r"^Download CSV$"],
    ),
    "who promoted version 2, and what did they see?": (
        [MODEL, "2"],
        [
            r"^As champion$",
            re.escape(HOSTILE),
            r"log_loss 0\.3100, constant 0\.6931",
            r"^Decisions and approvals$",
        ],
    ),
    "roll back and rescore what the bad version scored": (
        [MODEL, "Roll back"],
        [rf"{KEYS[6]}, {KEYS[7]}", r"^What will happen$"],
    ),
    "what did it cost?": ([MODEL, "Cost"], [r"\d+ s", r"^\d{4}-\d\d$", r"MiB"]),
    "what does an auditor get?": ([MODEL, "Ledger"], [r"The chain", r"CSV", r"JSON"]),
}


def test_each_question_is_answered_within_three_clicks_from_airflows_home(sign_in: SignIn) -> None:
    page = sign_in("bob", viewport={"width": 1200, "height": 1000})
    for number, (question, (links, answers)) in enumerate(QUESTIONS.items()):
        person = Clicks(page).navigate().click(*links)
        for answer in answers:
            assert person.sees(answer), question
        assert person.count <= 3, question
        screenshot(page, f"question-{number}")


def test_readme_shows_screenshots_of_these_tests() -> None:
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"docs/images/(console-.+?\.png)", readme)) == set(README_IMAGES.values())


def test_a_range_is_chosen_on_the_calendar_and_scored_again(sign_in: SignIn) -> None:
    page = sign_in("bob")
    person = Clicks(page).navigate().click("well")

    def chosen() -> tuple[str, str]:
        fields = (person.console.get_by_label(name, exact=True) for name in ("from", "to"))
        first, last = (field.input_value() for field in fields)
        return first, last

    def square(key: str) -> Locator:
        return person.console.locator(f"[data-key='{key}'] rect")

    square(KEYS[2]).click()
    assert chosen() == (KEYS[2], KEYS[2])
    # from the later to the earlier one, over one that leads to a page
    square(KEYS[6]).hover()
    page.mouse.down()
    square(WITH_QUARANTINE).hover()
    square(KEYS[3]).hover()
    page.mouse.up()
    assert chosen() == (KEYS[3], KEYS[6])
    assert person.console.locator(".cal-chosen").count() == 4
    screenshot(page, "calendar")
    person.console.get_by_role("button", name="Show what will happen").click()
    assert person.sees(f'"start": "{KEYS[3]}", "end": "{KEYS[6]}"')


def test_an_operator_mutes_an_incident_with_a_reason(sign_in: SignIn) -> None:
    page = sign_in("bob")
    person = Clicks(page).navigate().click(MODEL, "mute")
    form = person.console.get_by_role("form", name="Confirmation")
    form.get_by_role("button", name="Mute").click()
    assert page.frames[-1].url.endswith("signal=features"), "the browser asks for a reason"
    screenshot(page, "action-mute")
    form.get_by_label("Reason").fill("the feed is being moved")
    form.get_by_role("button", name="Mute").click()
    assert person.sees(r"features muted until .*the feed is being moved")


def test_an_action_is_done_by_keyboard_alone(sign_in: SignIn, site: str) -> None:
    page = sign_in("bob")
    page.goto(f"{site}/perennial/")
    label = "e => (e.labels?.[0] ?? e).innerText"

    def tab_to(name: str) -> None:
        for _ in range(200):
            page.keyboard.press("Tab")
            focused = page.locator(":focus")
            if focused.count() and focused.evaluate(label).strip() == name:
                assert focused.evaluate("e => getComputedStyle(e).outlineStyle") == "solid", name
                return
        pytest.fail(f"the keyboard does not reach {name!r} on {page.url}")

    tab_to("Skip to the content")
    page.keyboard.press("Enter")
    for link in (MODEL, "Retrain"):
        tab_to(link)
        page.keyboard.press("Enter")
        page.get_by_role("heading", name=link).first.wait_for()
    tab_to("Reason")
    page.keyboard.type("by keyboard")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(rf"/perennial/dags/{MODEL}\.train/runs/"))
    assert "by keyboard" in page.locator("main").inner_text()


def test_a_viewer_sees_the_model_and_no_action(sign_in: SignIn) -> None:
    person = Clicks(sign_in("vic")).navigate().click(MODEL)
    assert person.sees("Versions")
    assert (
        person.console.get_by_role("link", name=re.compile("^(Roll back|Retrain|mute|promote)$")).count() == 0
    )


def test_a_run_and_its_page_in_airflow_lead_to_each_other(sign_in: SignIn) -> None:
    page = sign_in("ann")
    person = Clicks(page).navigate().click(MODEL, "Run partitions")
    person.console.get_by_label("First partition").fill(KEYS[2])
    person.console.get_by_role("button", name="Show what will happen").click()
    person.console.get_by_label("Reason").fill("looks odd")
    screenshot(page, "action-run")
    person.console.get_by_role("button", name="Start").click()
    assert person.sees("looks odd")
    screenshot(page, "run")
    person.console.get_by_role("link", name="Run in Airflow").click()
    page.wait_for_url(re.compile(rf"/dags/{MODEL}\.score/runs/"))
    page.get_by_role("link", name="Report").click()
    assert person.sees("looks odd")
    screenshot(page, "tab-of-a-run")


def addresses_of_pages(page: Page, site: str) -> list[str]:
    """One page of the console of each kind, by following links; and actions that are about to be confirmed."""
    root, found, waiting = f"{site}/perennial", {}, [f"{site}/perennial/models/well", f"{site}/perennial/"]
    while waiting:
        address = waiting.pop()
        kind = re.sub(r"\d[\d-]*", "0", address.partition("?")[0].replace(f"/{MODEL}", "/well"))
        if kind in found or not page.request.get(address, max_redirects=0).ok:
            continue
        found[kind] = address
        page.goto(address)
        links = page.eval_on_selector_all(
            "a[href]",
            "links => links.map(a => new URL(a.getAttribute('href'), document.baseURI).href.split('#')[0])",
        )
        waiting += [
            link
            for link in links
            if link.startswith(f"{root}/") and not re.search(r"\.(html|csv|json)(\?|$)", link)
            and re.search(rf"models/({MODEL}|well)|{root}/(\?|$)", link)
        ]  # fmt: skip
    actions = f"{root}/models/{MODEL}/actions"
    shown = (f"run?stage=data&start={KEYS[0]}&end={KEYS[3]}", "mute?signal=features", "rollback", "none")
    return [*found.values(), *(f"{actions}/{action}" for action in shown)]


@pytest.mark.parametrize(
    "look",
    [
        {"color_scheme": "light", "viewport": {"width": 1500, "height": 950}},
        {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}},
    ],
    ids=["light", "dark and narrow"],
)
def test_no_page_has_an_accessibility_finding_that_matters(
    sign_in: SignIn, site: str, look: dict[str, Any]
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page, axe = sign_in("admin", **look), Axe()
    addresses = addresses_of_pages(page, site)
    assert len(addresses) > 10, addresses
    wrong = []
    for number, address in enumerate(addresses):
        page.goto(address)
        screenshot(page, f"page-{look['color_scheme']}-{number}")
        wrong += [
            f"{address}: {finding['id']} ({finding['impact']}): {finding['nodes'][0]['html'][:200]}"
            for finding in axe.run(page).response["violations"]
            if finding["impact"] != "minor"
        ]
        width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        wrong += [f"{address}: {width} pixels too wide"] * (width > 0)
    assert not wrong, "\n".join(wrong)
