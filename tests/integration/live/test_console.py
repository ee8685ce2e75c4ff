"""Actions of the console in a real Airflow, whose scheduler does what they start."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from perennial.local_stack.config import password
from perennial.storage import ledger, manifests
from support.live import Live, await_

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(600)]
NAME = "toy_console"
BAD = ("2024-01-13", "2024-01-14")


@pytest.fixture
def browser(live: Live) -> Iterator[httpx.Client]:
    """A client that is logged in as a browser is, by a cookie."""
    with httpx.Client(base_url=live.config.airflow_url, timeout=60, trust_env=False) as client:
        login = {"username": "admin", "password": password(live.config)}
        token = client.post("/auth/token", json=login).json()["access_token"]
        client.cookies.set("_token", token)
        client.headers["Sec-Fetch-Site"] = "same-origin"
        yield client


def act(browser: httpx.Client, action: str, do: str = "start", **choices: str) -> httpx.Response:
    """Look at an action, and confirm it."""
    address = f"/perennial/models/{NAME}/actions/{action}"
    page = browser.get(address, params=choices).text
    form = page[page.index('method="post"') :]
    hidden = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', form))
    answer = browser.post(address, data=hidden | {"reason": "a test of the console", "do": do})
    assert answer.status_code == 303, answer.text
    return answer


def test_a_promotion_and_a_rollback_that_scores_again(
    live: Live, browser: httpx.Client, champion: Any
) -> None:
    from perennial.steps import dispatch

    spec = champion(NAME)
    first = ledger.records(NAME)[-1]["model_version"]
    dispatch.run("train", spec, as_of="2024-01-14", force=True)
    second = str(max(int(r["model_version"]) for r in ledger.records(NAME) if r["model_version"]))
    assert second != first
    for do in ("pause", "resume"):
        act(browser, "pause", do=do)

    def champion_is(version: str) -> bool:
        changes = [r for r in ledger.records(NAME) if r["decision"] in ("promoted", "rolled back")]
        return bool(changes[-1]["model_version"] == version)

    act(browser, "promote", version=second)
    await_(lambda: champion_is(second), 120, lambda: live.airflow.runs(f"{NAME}.rollback"))
    dispatch.run("score", spec, start=BAD[0], end=BAD[1])
    shown = browser.get(f"/perennial/models/{NAME}/actions/rollback").text
    assert ", ".join(BAD) in shown

    run = act(browser, "rollback", version=first, rescore="yes").headers["location"]

    def rescored() -> bool:
        scores = [manifests.read(NAME, "score", day) for day in BAD]
        return {s.model_version for s in scores if s} == {first}

    await_(rescored, 180, lambda: live.airflow.runs(f"{NAME}.score"))
    assert champion_is(first)
    change = [r for r in ledger.records(NAME) if r["decision"] == "rolled back"][-1]
    assert (change["actor"], change["reason"]) == ("admin", "a test of the console")
    (again,) = [r for r in live.airflow.runs(f"{NAME}.score") if r["conf"].get("end") == BAD[1]]
    assert again["conf"]["reason"] == f"version {second} was rolled back: a test of the console"
    assert browser.get(f"{run}.json").json()["decisions"][0]["decision"] == "rolled back"
