"""The console's actions in Airflow's whole API server: who may do what, what is refused, and what Airflow then has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.utils.session import create_session
from fastapi.testclient import TestClient

from perennial.alerting import incidents
from perennial.storage import ledger
from perennial.storage.ledger import LedgerKind
from perennial_airflow.dag_factory.factory import STAGES
from support.console.actions import (
    ACTIONS,
    CHOICES,
    MODEL,
    answer_to,
    ask_for_approval,
    confirm,
    fields,
    runs,
)
from support.console.world import KEYS

MAY = {"VIEWER": False, "USER": True, "OP": True, "ADMIN": True}
Browser = Callable[..., TestClient]


@pytest.fixture
def browser(api_server: Any, server_lake: None) -> Browser:
    """Makes the browser of somebody with a role, logged in by a cookie."""

    def make(role: str = "USER", name: str = "ann") -> TestClient:
        client = TestClient(api_server, base_url="http://testserver", follow_redirects=False)
        client.cookies.set(
            "_token", get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=name, role=role))
        )
        client.headers["Sec-Fetch-Site"] = "same-origin"
        return client

    return make


@pytest.mark.parametrize("role", MAY)
def test_each_role_sees_and_reaches_what_it_may_do_and_nothing_else(browser: Browser, role: str) -> None:
    client = browser(role)
    before = [len(runs(client, stage)) for stage in STAGES]
    page = client.get(f"/perennial/models/{MODEL}").text
    for action, choices in CHOICES.items():
        assert (f'href="{ACTIONS}/{action}' in page) == MAY[role], action
        shown = client.get(f"{ACTIONS}/{action}", params=choices)
        assert shown.status_code == (200 if MAY[role] else 403), action
        if not MAY[role]:
            # a token of somebody else does not help
            allowed = fields(browser("OP").get(f"{ACTIONS}/{action}", params=choices).text)
            answer = client.post(f"{ACTIONS}/{action}", data=allowed | {"reason": "a test", "do": "start"})
            assert answer.status_code == 403
    assert client.get(f"{ACTIONS}/answer").status_code == (200 if MAY[role] else 403)
    assert client.get(f"{ACTIONS}/nothing").status_code == 404
    assert [len(runs(client, stage)) for stage in STAGES] == before


def test_who_is_not_logged_in_is_refused(browser: Browser) -> None:
    client = browser()
    client.cookies.clear()
    assert client.get(f"{ACTIONS}/retrain").status_code == 401
    assert client.post(f"{ACTIONS}/retrain", data={"reason": "a test"}).status_code == 401


def test_a_range_is_scored_in_one_run_of_the_user_with_the_reason(browser: Browser) -> None:
    client = browser("USER", "ann")
    answer = confirm(client, "run", CHOICES["run"])
    assert answer.status_code == 303, answer.text
    run = runs(client, "score")[0]
    assert run["conf"] == {"start": KEYS[2], "end": KEYS[3], "reason": "a test"}
    assert (run["note"], run["triggering_user_name"], run["partition_key"]) == ("a test", "ann", None)
    page = client.get(answer.headers["location"])
    assert page.status_code == 200
    details = client.get(f"{answer.headers['location']}.json").json()
    assert (details["run"]["user"], details["run"]["note"]) == ("ann", "a test")
    assert "queued" in page.text and "ann" in page.text and "a test" in page.text
    assert f'href="/dags/{MODEL}.score/runs/{quote(run["dag_run_id"])}"' in page.text


def test_a_partition_and_a_backfill_of_data(browser: Browser) -> None:
    client = browser()
    assert confirm(client, "run", {"stage": "data", "start": KEYS[1]}).status_code == 303
    run = runs(client, "data")[0]
    assert (run["partition_key"], run["conf"]) == (KEYS[1], {"reason": "a test"})
    answer = confirm(client, "run", {"stage": "data", "start": KEYS[2], "end": KEYS[4], "force": "yes"})
    assert answer.status_code == 303, answer.text
    backfill = client.get("/api/v2/backfills", params={"dag_id": f"{MODEL}.data"}).json()["backfills"][0]
    assert backfill["dag_run_conf"] == {"force": True, "reason": "a test"}
    keys = {run["partition_key"] for run in runs(client, "data") if run["run_type"] == "backfill"}
    assert keys >= set(KEYS[2:5])


def test_a_training_of_the_latest_partition(browser: Browser) -> None:
    client = browser()
    assert confirm(client, "retrain", {"as_of": KEYS[-1]}).status_code == 303
    run = runs(client, "train")[0]
    assert (run["partition_key"], run["conf"]) == (KEYS[-1], {"reason": "a test"})


def test_a_rollback_lists_what_the_bad_version_scored_and_rescores_it(browser: Browser) -> None:
    client = browser()
    page = client.get(f"{ACTIONS}/rollback").text
    assert ", ".join(KEYS[6:]) in page and "replaces version 2 as champion" in page
    assert confirm(client, "rollback", {}).status_code == 303
    run = runs(client, "rollback")[0]
    assert run["conf"] == {"to_version": 1, "reason": "a test", "rescore": True}
    kept = client.get(f"{ACTIONS}/rollback", params={"version": "1", "rescore": "no"}).text
    assert "which keep its predictions" in kept and KEYS[6] in kept, (
        "they are listed if they are not scored again, too"
    )
    without = confirm(client, "promote", {"version": "1", "rescore": "no"}, do="start")
    assert without.status_code == 303
    assert runs(client, "rollback")[0]["conf"]["rescore"] is False


def test_a_signal_is_muted_by_the_user(browser: Browser) -> None:
    client = browser("OP", "bob")
    answer = confirm(client, "mute", {})
    assert answer.headers["location"] == f"/perennial/models/{MODEL}#incidents"
    (mute,) = incidents.read_log(MODEL).mutes
    assert (mute["signals"], mute["reason"]) == (["features"], "a test")
    last = ledger.records(MODEL)[-1]
    assert (last["decision"], last["actor"]) == ("muted", "bob")
    assert "features muted until" in client.get(f"/perennial/models/{MODEL}").text


def test_all_dags_are_paused_and_resumed_and_the_ledger_has_the_reason(browser: Browser) -> None:
    client = browser("ADMIN", "ann")

    def paused() -> set[bool]:
        return {client.get(f"/api/v2/dags/{MODEL}.{stage}").json()["is_paused"] for stage in STAGES}

    for do in ("resume", "pause", "resume"):
        if f'value="{do}"' not in client.get(f"{ACTIONS}/pause").text:
            continue
        assert confirm(client, "pause", {}, do=do).status_code == 303
        assert paused() == {do == "pause"}
        last = ledger.records(MODEL, LedgerKind.SCHEDULES)[-1]
        assert (last["decision"], last["actor"], last["reason"]) == (f"{do}d", "ann", "a test")
        assert last["evidence"] == {"stages": list(STAGES)}
        told = f"ann paused it at {last['recorded_at']}: a test" in client.get(f"{ACTIONS}/pause").text
        assert told == (do == "pause")


@pytest.mark.parametrize("option", ["Approve", "Reject"])
def test_an_approval_that_waits_is_answered(browser: Browser, option: str) -> None:
    client = browser("USER", "ann")
    assert "Nothing waits for an answer" in client.get(f"{ACTIONS}/answer").text
    run_id = f"question_{option}"
    with create_session() as session:
        ask_for_approval(client, session, run_id)
    page = client.get(f"{ACTIONS}/answer").text
    assert f"Retrain {MODEL}?" in page and "As of now: it is old" in page
    assert browser("VIEWER").get(f"{ACTIONS}/answer").status_code == 403
    assert confirm(client, "answer", {}, do=option, reason=" ").status_code == 422
    assert confirm(client, "answer", {}, do=option).status_code == 303
    answer = answer_to(client, run_id)
    assert answer["chosen_options"] == [option] and answer["params_input"] == {"reason": "a test"}
    assert answer["responded_by_user"]["name"] == "ann"


@pytest.mark.parametrize(
    ("changes", "status", "cause"),
    [
        ({"reason": " \t "}, 422, "not only spaces"),
        ({"reason": "x" * 501}, 422, "to 500 characters"),
        ({"token": "forged"}, 403, "Look again"),
        ({"token": ""}, 403, "Look again"),
        ({"plan": "other"}, 409, "has changed"),
        ({"do": "nothing"}, 400, "Nothing was done"),
        ({"end": KEYS[4]}, 409, "has changed"),
    ],
)
def test_what_is_not_confirmed_as_shown_is_not_done(
    browser: Browser, changes: dict[str, str], status: int, cause: str
) -> None:
    client = browser()
    before = len(runs(client, "score"))
    answer = confirm(client, "run", CHOICES["run"], **changes)
    assert answer.status_code == status
    assert cause in answer.text
    assert len(runs(client, "score")) == before


def test_another_site_can_send_nothing(browser: Browser) -> None:
    client = browser()
    data = fields(client.get(f"{ACTIONS}/retrain").text) | {"reason": "a test", "do": "start"}
    before = len(runs(client, "train"))
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "", "Origin": "http://evil.example"},
    ):
        assert client.post(f"{ACTIONS}/retrain", data=data, headers=headers).status_code == 403
    # the token of another session
    other = fields(browser("ADMIN", "eve").get(f"{ACTIONS}/retrain").text)["token"]
    assert client.post(f"{ACTIONS}/retrain", data=data | {"token": other}).status_code == 403
    # and of another action
    other = fields(client.get(f"{ACTIONS}/rollback").text)["token"]
    assert client.post(f"{ACTIONS}/retrain", data=data | {"token": other}).status_code == 403
    assert len(runs(client, "train")) == before


def test_looking_changes_nothing(browser: Browser) -> None:
    client = browser()
    before = {stage: len(runs(client, stage)) for stage in STAGES}
    for action, choices in CHOICES.items():
        client.get(f"{ACTIONS}/{action}", params=choices | {"reason": "a test", "do": "start"})
    assert {stage: len(runs(client, stage)) for stage in STAGES} == before


def test_a_version_leads_to_the_run_that_trained_it(browser: Browser) -> None:
    page = browser("VIEWER").get(f"/perennial/models/{MODEL}/versions/2").text
    assert f'<a href="/perennial/dags/{MODEL}.train/runs/manual__1">manual__1</a>' in page


def test_what_will_happen_as_json(browser: Browser) -> None:
    client = browser()
    content = client.get(f"{ACTIONS}/rollback.json").json()
    assert content["plan"]["operations"][0]["conf"]["to_version"] == 1
    assert client.get(f"{ACTIONS}/rollback", headers={"Accept": "application/json"}).json() == content
    assert browser("VIEWER").get(f"{ACTIONS}/rollback.json").status_code == 403


def test_what_airflow_refuses_is_said(browser: Browser) -> None:
    client = browser()
    assert confirm(client, "run", {"stage": "data", "start": KEYS[1], "end": KEYS[3]}).status_code in (
        303,
        409,
    )
    answer = confirm(client, "run", {"stage": "data", "start": KEYS[1], "end": KEYS[3]})
    assert answer.status_code == 409
    assert "Airflow refuses it: There is already a running backfill" in answer.text
