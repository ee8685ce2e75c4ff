"""The console with the users and roles of Airflow's FAB auth manager: log-in by its form, who sees and may do what.

The other tests of the console have Airflow's default, the simple auth manager.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import httpx
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from perennial.alerting import incidents
from perennial.core.settings import ROOT
from perennial.storage import ledger
from perennial_airflow.dag_factory.factory import STAGES
from support.console import chromium, fab_server
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
from support.console.fab_server import ONE_MODEL, FabServer
from support.console.world import KEYS

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
#: Whether Airflow's roles may do the actions; what is not among them may not even look.
MAY = {"vic": False, "ann": True, "bob": True, "admin": True, "tom": True}
#: A page of each kind about a model.
PAGES = (
    "", ".json", "/versions/2", "/compare?a=1&b=2", "/features", "/ledger", "/ledger/export.json", "/cost",
    f"/quarantine/{KEYS[5]}",
)  # fmt: skip
LogIn = Callable[[str], httpx.Client]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FabServer]:
    with fab_server.server(tmp_path_factory.mktemp("fab server")) as running:
        yield running


@pytest.fixture(scope="module")
def clients() -> Iterator[dict[str, httpx.Client]]:
    """The browsers of those who have logged in, by user."""
    made: dict[str, httpx.Client] = {}
    yield made
    for client in made.values():
        client.close()


@pytest.fixture
def log_in(server: FabServer, clients: dict[str, httpx.Client]) -> LogIn:
    """Logs a user in by the form, the first time."""

    def make(user: str) -> httpx.Client:
        if user not in clients:
            clients[user], _ = fab_server.log_in(server.url, user)
        return clients[user]

    return make


def test_a_link_in_a_message_leads_through_the_form_to_the_page(server: FabServer) -> None:
    client, page = fab_server.log_in(server.url, "vic", f"/perennial/models/{MODEL}?a=b")
    with contextlib.closing(client):
        assert (page.status_code, str(page.url)) == (200, f"{server.url}/perennial/models/{MODEL}?a=b")
        assert "Versions" in page.text
        client.cookies.clear()
        assert client.get(f"/perennial/models/{MODEL}").status_code == 401
        assert client.post(f"{ACTIONS}/retrain", data={"reason": "a test"}).status_code == 401


@pytest.mark.parametrize("user", MAY)
def test_each_role_sees_and_reaches_what_it_may_do_and_nothing_else(log_in: LogIn, user: str) -> None:
    client = log_in(user)
    shown = {path: client.get(f"/perennial/models/{MODEL}{path}").status_code for path in PAGES}
    assert set(shown.values()) == {200}, shown
    page = client.get(f"/perennial/models/{MODEL}").text
    for action, choices in CHOICES.items():
        assert (f'href="{ACTIONS}/{action}' in page) == MAY[user], action
        answer = client.get(f"{ACTIONS}/{action}", params=choices)
        assert answer.status_code == (200 if MAY[user] else 403), action
        if not MAY[user]:
            allowed = fields(log_in("bob").get(f"{ACTIONS}/{action}", params=choices).text)
            answer = client.post(f"{ACTIONS}/{action}", data=allowed | {"reason": "a test", "do": "start"})
            assert answer.status_code == 403
    assert client.get(f"{ACTIONS}/answer").status_code == (200 if MAY[user] else 403)


def test_a_role_for_one_model_sees_that_model_and_a_role_without_rights_none(log_in: LogIn) -> None:
    def models(user: str) -> list[str]:
        return [model["name"] for model in log_in(user).get("/perennial/models.json").json()["models"]]

    assert models("mia") == [ONE_MODEL] and models("pat") == []
    assert {MODEL, ONE_MODEL} <= set(models("vic"))
    for user in ("mia", "pat"):
        refused = {path: log_in(user).get(f"/perennial/models/{MODEL}{path}").status_code for path in PAGES}
        assert set(refused.values()) == {403}, refused
    assert log_in("mia").get(f"/perennial/models/{ONE_MODEL}").status_code == 200
    retrain = f"/perennial/models/{ONE_MODEL}/actions/retrain"
    assert log_in("mia").get(retrain).status_code == 403


def test_a_team_sees_and_runs_its_own_models_and_another_team_none_of_them(log_in: LogIn) -> None:
    def dags(user: str) -> set[str]:
        return {dag["dag_id"] for dag in log_in(user).get("/api/v2/dags?limit=500").json()["dags"]}

    own = {"flight_late", "flight_delay"}
    assert f"{MODEL}.train" in dags("tom") and "flight_late.train" not in dags("tom")
    assert dags("eve") == {f"{model}.{stage}" for model in own for stage in STAGES} | {
        "features.flight_history"
    }
    shown = log_in("eve").get("/perennial/models.json").json()["models"]
    assert {model["name"] for model in shown} == own
    refused = {path: log_in("eve").get(f"/perennial/models/{MODEL}{path}").status_code for path in PAGES}
    assert set(refused.values()) == {403}, refused
    for action, choices in CHOICES.items():
        assert log_in("eve").get(f"{ACTIONS}/{action}", params=choices).status_code == 403, action
    # an event of an asset would start another team's DAGs, and could name somebody else as its maker
    for path in ("/assets/events", "/assets/1/materialize"):
        assert log_in("eve").post(f"/api/v2{path}", json={"asset_id": 1}).status_code == 403, path
    backfill = {"from_date": "2020-01-01", "to_date": "perhaps"}
    for dag, expected in ((f"{MODEL}.score", 403), ("flight_late.score", 422), (None, 403)):
        answer = log_in("eve").post("/api/v2/backfills", json=backfill | {"dag_id": dag})
        assert answer.status_code == expected, (dag, answer.text)


#: Requests for each action on a DAG that Airflow refuses for their content, if it does not refuse the user before.
DAG_ACTIONS = (
    ("POST", f"/dags/{MODEL}.score/dagRuns", {"conf": 1}),
    ("PATCH", f"/dags/{MODEL}.score", {"is_paused": "perhaps"}),
    ("POST", f"/dags/{MODEL}.score/clearTaskInstances", {"dry_run": "perhaps"}),
    ("PATCH", f"/dags/{MODEL}.score/dagRuns/none", {"state": "perhaps"}),
)


@pytest.mark.parametrize(("user", "may"), [*MAY.items(), ("mia", False), ("eve", False), ("pat", False)])
def test_airflows_own_api_lets_the_same_roles_act_on_a_dag(log_in: LogIn, user: str, may: bool) -> None:
    for method, path, body in DAG_ACTIONS:
        answer = log_in(user).request(method, f"/api/v2{path}", json=body)
        assert answer.status_code == (422 if may else 403), (path, answer.text)


def test_airflow_and_the_ledger_name_who_acted(
    server: FabServer, log_in: LogIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERENNIAL_HOME", server.environment["PERENNIAL_HOME"])
    monkeypatch.setenv("PERENNIAL_MODELS", server.environment["PERENNIAL_MODELS"])
    client = log_in("ann")
    started = confirm(client, "run", CHOICES["run"])
    assert started.status_code == 303, started.text
    run = runs(client, "score")[0]
    assert (run["triggering_user_name"], run["note"]) == ("ann", "a test")
    assert "ann" in client.get(started.headers["location"]).text
    assert confirm(client, "rollback", {}).status_code == 303
    assert runs(client, "rollback")[0]["conf"] == {"to_version": 1, "reason": "a test", "rescore": True}
    assert confirm(client, "mute", {}).status_code == 303
    assert incidents.read_log(MODEL).mutes[0]["signals"] == ["features"]
    paused = 'value="resume"' in client.get(f"{ACTIONS}/pause").text
    assert confirm(client, "pause", {}, do="resume" if paused else "pause").status_code == 303
    assert {record["actor"] for record in ledger.records(MODEL)[-2:]} == {"ann"}


def test_an_approval_is_answered_by_who_may(server: FabServer, log_in: LogIn) -> None:
    engine = create_engine(f"sqlite:///{server.database}", connect_args={"timeout": 60})
    with Session(engine) as session, session.begin():
        ask_for_approval(log_in("ann"), session, "question")
    engine.dispose()
    assert log_in("vic").get(f"{ACTIONS}/answer").status_code == 403
    assert "Retrain" in log_in("ann").get(f"{ACTIONS}/answer").text
    assert confirm(log_in("ann"), "answer", {}, do="Approve").status_code == 303
    answer = answer_to(log_in("ann"), "question")
    assert answer["chosen_options"] == ["Approve"] and answer["responded_by_user"]["name"] == "ann"


def test_a_model_with_another_owner_leaves_the_role_of_its_first_team(
    server: FabServer, log_in: LogIn
) -> None:
    code = (
        "from perennial_airflow.dag_factory import team_roles\n"
        "owned = team_roles.dags_by_owner().by_owner\n"
        "delay = {dag for dag in owned['flights'] if dag.startswith('flight_delay.')}\n"
        "late = {dag for dag in owned['flights'] if dag.startswith('flight_late.')}\n"
        "owned['digits'] |= delay\n"
        "owned['flights'] -= late | delay\n"  # as if the folder of flight_late could not be read
        "print(team_roles.sync_roles(team_roles.OwnedDags({**owned, 'a' * 100: set()}, late, [])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | server.environment, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "'team:flights'" in done.stdout, done.stderr[-2000:]
    assert re.search(f"'team:{'a' * 50}~[0-9a-f]{{8}}'", done.stdout), (
        "no role has a name that is longer than 64"
    )
    details = "/api/v2/dags/flight_{}.train"
    assert [log_in("eve").get(details.format(name)).status_code for name in ("late", "delay")] == [200, 403]


@pytest.mark.skipif(not chromium.PROGRAM, reason=chromium.REASON)
def test_the_navigation_shows_the_console_to_roles_that_may_read_plugins(
    server: FabServer, log_in: LogIn
) -> None:
    with chromium.launched() as browser:

        def home(user: str) -> Page:
            """A small page of Airflow after a log-in."""
            page = chromium.new_context(browser).new_page()
            page.context.add_cookies(
                [
                    {"name": c.name, "value": c.value or "", "url": server.url}
                    for c in log_in(user).cookies.jar
                ]
            )
            page.goto(f"{server.url}/pools")
            page.get_by_role("link", name="Dags", exact=True).first.wait_for()
            page.wait_for_load_state("networkidle")
            return page

        def opens_the_models(page: Page) -> None:
            entry(page).click()
            page.frame_locator("iframe").first.get_by_role("link", name=MODEL).first.wait_for()

        def entry(page: Page) -> Locator:
            return page.get_by_role("link", name="Models", exact=True)

        opens_the_models(home("bob"))
        page = home("vic")
        assert entry(page).count() == 0
        page.goto(f"{server.url}/dags/{MODEL}.data")
        page.get_by_role("button", name="Dag Docs").click()
        with page.context.expect_page() as opened:
            page.get_by_role("link", name=f"State, charts, decisions and actions of {MODEL}").click()
        opened.value.wait_for_url(f"{server.url}/perennial/models/{MODEL}")
        command = ["roles", "add-perms", "Viewer", "User", "--resource", "Plugins", "--action", "can_read"]
        assert f"airflow {' '.join(command)}\n" in (ROOT / "docs" / "console.md").read_text()
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *command],
            env=server.environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        opens_the_models(home("vic"))
