"""MLflow with the log-in of the image: who may do what, on a real server over SQLite.

The scripts of the image run here as they do there; the library trains and promotes with the users that they create.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from perennial.cli.doctor import environment
from perennial.core.errors import RegistryRequestError
from perennial.core.settings import ROOT
from perennial.lifecycle import champion
from perennial.modeling import mlflow_api, registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps.promote import promote
from perennial.steps.train import train
from perennial_airflow import airflow_connections
from support import servers, toys

DOCKER = ROOT / "docker" / "mlflow"
PASSWORDS = {user: f"the password of {user}" for user in ("admin", "steps", "promotion", "console", "ann")}
API, ALIAS = "/api/2.0/mlflow", "/registered-models/alias"
AJAX = "/ajax-api/2.0/mlflow"


@dataclass
class Server:
    """A running server.

    Attributes:
        url: its address.
        environ: variables of its processes.
        model: a registered model, with versions 1 and 2.
    """

    url: str
    environ: dict[str, str]
    model: str = "guarded"
    session: requests.Session = field(default_factory=requests.Session)

    def call(
        self, user: str | None, method: str, path: str, body: Any = None, **options: Any
    ) -> requests.Response:
        """Send a request as a user; as nobody with None."""
        credentials = (user, PASSWORDS[user]) if user else None
        return self.session.request(
            method, f"{self.url}{path}", json=body, auth=credentials, timeout=60, **options
        )


def script(name: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a script of the image."""
    command = [sys.executable, str(DOCKER / name)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, env=os.environ | environ)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Databases and users as `migrate.py` makes them, and the server as `server.py` starts it."""
    folder, port = tmp_path_factory.mktemp("mlflow access"), servers.free_port()
    environ = {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
        # a character that the format of the configuration has a meaning for
        "MLFLOW_AUTH_DATABASE_URI": f"sqlite:///{folder}/users%20.db",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key of the tests",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "DO_NOT_TRACK": "true",
        "TMPDIR": str(folder),
        **{f"MLFLOW_{user.upper()}_PASSWORD": word for user, word in PASSWORDS.items() if user != "ann"},
    }
    done = script("migrate.py", environ)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "user" in line] == [
        f"MLflow's user {user}: created" for user in ("admin", "steps", "promotion", "console")
    ]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, str(DOCKER / "server.py"), "--artifacts-destination", str(folder / "artifacts"),
               "--workers", "1", "--host", "127.0.0.1", "--port", str(port),
               "--allowed-hosts", f"127.0.0.1:{port}"]  # fmt: skip
    without_passwords = {key: value for key, value in environ.items() if not key.endswith("_PASSWORD")}
    with servers.running(command, f"{url}/health", folder / "mlflow.log", without_passwords):
        running = Server(url, environ)
        running.session.trust_env = False
        _register(running)
        yield running


def _register(server: Server) -> None:
    """A model with two versions, registered by the user of the steps; and a person who has an experiment of her own."""
    name = {"name": server.model}
    assert server.call("steps", "POST", f"{API}/registered-models/create", name).ok
    run = server.call("steps", "POST", f"{API}/runs/create", {"experiment_id": "0"}).json()["run"]["info"]
    for _ in range(2):
        version = name | {"source": f"{run['artifact_uri']}/model", "run_id": run["run_id"]}
        answer = server.call("steps", "POST", f"{API}/model-versions/create", version)
        assert answer.ok, answer.text
    ann = {"username": "ann", "password": PASSWORDS["ann"]}
    assert server.call("admin", "POST", f"{API}/users/create", ann).ok
    owned = {"username": "ann", "resource_type": "experiment", "resource_id": "0", "permission": "EDIT"}
    assert server.call("admin", "POST", "/api/3.0/mlflow/users/permissions/grant", owned).ok


def alias(server: Server, name: str = "champion", version: str = "1") -> dict[str, str]:
    return {"name": server.model, "alias": name, "version": version}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"), ("GET", f"{API}/registered-models/search"), ("GET", f"{AJAX}/registered-models/search"),
        ("POST", "/graphql"), ("POST", f"{API}{ALIAS}"), ("DELETE", f"{AJAX}{ALIAS}"), ("GET", "/get-artifact"),
        ("GET", "/api/2.0/mlflow-artifacts/artifacts/0/a"), ("PUT", "/ajax-api/2.0/mlflow-artifacts/artifacts/0/a"),
        ("POST", "/api/3.0/mlflow/mcp-servers"), ("POST", f"{API}/users/create"), ("GET", "/signup"),
    ],
)  # fmt: skip
def test_nobody_gets_in_without_a_password(server: Server, method: str, path: str) -> None:
    answer = server.call(None, method, path, {} if method != "GET" else None)
    assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == 'Basic realm="mlflow"'
    wrong = server.session.request(method, f"{server.url}{path}", auth=("admin", "wrong"), timeout=60)
    assert wrong.status_code == 401


def test_the_health_check_needs_no_password(server: Server) -> None:
    assert server.call(None, "GET", "/health").text == "OK"


@pytest.mark.parametrize("user", ["console", "steps", "promotion", "ann", "admin"])
def test_each_user_reads(server: Server, user: str) -> None:
    for method, path, body in (
        ("GET", "/", None),
        ("GET", f"{API}/registered-models/get?name={server.model}", None),
        ("GET", f"{AJAX}/model-versions/search", None),
        ("POST", f"{API}/experiments/search", {"max_results": 5}),
        ("POST", f"{API}/runs/search", {"experiment_ids": ["0"]}),
        ("POST", f"{API}/registered-models/get-latest-versions", {"name": server.model}),
        ("POST", "/graphql", {"query": "{ __typename }"}),
    ):
        answer = server.call(user, method, path, body)
        assert answer.status_code == 200, (path, answer.text)


#: What somebody without a right to write tries, most of which MLflow alone would let each user do.
WRITES = (
    ("POST", f"{API}/experiments/create", {"name": "theirs"}),
    ("POST", f"{AJAX}/registered-models/create", {"name": "theirs"}),
    ("POST", f"{API}/runs/create", {"experiment_id": "0"}),
    ("POST", f"{API}/model-versions/create", {"name": "guarded", "source": "models:/m-1"}),
    ("POST", f"{API}{ALIAS}", {"name": "guarded", "alias": "mine", "version": "1"}),
    ("POST", f"{API}/registered-models/set-tag", {"name": "guarded", "key": "a", "value": "b"}),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/0/a.txt", {}),
    ("PUT", "/ajax-api/2.0/mlflow-artifacts/artifacts/0/a.txt", {}),
    ("POST", "/api/3.0/mlflow/mcp-servers", {"name": "a/b"}),
    ("POST", "/ajax-api/3.0/mlflow/demo/generate", {}),
    ("POST", "/ajax-api/3.0/mlflow/gateway/secrets/create", {}),
    ("POST", f"{API}/webhooks", {"name": "w", "url": "https://example.com", "events": []}),
    ("PATCH", f"{API}/users/update-password", {"username": "promotion", "password": "a new password"}),
)


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_who_was_given_nothing_only_reads(
    server: Server, method: str, path: str, body: dict[str, Any]
) -> None:
    assert server.call("console", method, path, body).status_code == 403


def test_a_grant_of_mlflows_own_lets_a_person_write_there_and_nowhere_else(server: Server) -> None:
    assert server.call("ann", "POST", f"{API}/runs/create", {"experiment_id": "0"}).status_code == 200
    tag = {"name": server.model, "key": "a", "value": "b"}
    assert server.call("ann", "POST", f"{API}/registered-models/set-tag", tag).status_code == 403


@pytest.mark.parametrize("base", [API, AJAX])
def test_only_the_user_of_promotions_moves_the_champion(server: Server, base: str) -> None:
    path = f"{base}{ALIAS}"

    def pointed() -> str | None:
        answer = server.call("console", "GET", f"{path}?name={server.model}&alias=champion")
        return answer.json()["model_version"]["version"] if answer.ok else None

    assert server.call("promotion", "POST", path, alias(server)).status_code == 200
    for method in ("POST", "DELETE"):
        for user in ("steps", "ann", "console"):
            answer = server.call(user, method, path, alias(server, version="2"))
            assert answer.status_code == 403, (user, answer.text)
    assert "only users with the role promotion" in server.call("steps", "POST", path, alias(server)).text
    assert pointed() == "1"
    assert server.call("promotion", "POST", path, alias(server, version="2")).status_code == 200
    assert pointed() == "2"
    assert server.call("promotion", "DELETE", path, alias(server)).status_code == 200
    assert pointed() is None


@pytest.mark.parametrize(
    "send",
    [
        lambda server, body: server.call("steps", "POST", f"{API}{ALIAS}", json.dumps(body)),
        lambda server, body: server.call("steps", "POST", f"{API}{ALIAS}?alias=other", body),
        lambda server, body: server.call("steps", "POST", f"/{API}{ALIAS}", body),
        lambda server, body: server.call("steps", "POST", f"{API}{ALIAS}/", body),
        lambda server, body: server.call("steps", "POST", f"{API}/registered-models%2Falias", body),
        lambda server, body: server.call("steps", "POST", f"{API}{ALIAS}", body | {"alias": "Champion"}),
        lambda server, body: server.call(
            "steps", "POST", f"{API}{ALIAS}", body, headers={"X-HTTP-Method-Override": "GET"}
        ),
        lambda server, body: server.session.post(
            f"{server.url}{API}{ALIAS}", auth=("steps", PASSWORDS["steps"]), timeout=60,
            headers={"Content-Type": "application/json"},
            data=json.dumps(body).replace('"alias"', '"alias": "other", "alias"'),
        ),
    ],
    ids=["text of JSON", "query", "slashes", "slash at the end", "encoded slash", "upper case", "method", "twice"],
)  # fmt: skip
def test_no_way_of_writing_the_request_gets_round_that(
    server: Server, send: Callable[[Server, dict[str, str]], requests.Response]
) -> None:
    assert send(server, alias(server)).status_code in (400, 403, 404, 405)
    answer = server.call("admin", "GET", f"{API}/registered-models/get?name={server.model}")
    pointers = answer.json()["registered_model"].get("aliases", [])
    assert not [item for item in pointers if item["alias"].casefold() == "champion"]


def test_steps_set_and_remove_the_challenger(server: Server) -> None:
    for method in ("POST", "DELETE"):
        assert server.call("steps", method, f"{API}{ALIAS}", alias(server, "challenger")).status_code == 200


@pytest.mark.parametrize("user", ["steps", "promotion"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", f"{API}/registered-models/delete", {"name": "guarded"}),
        ("DELETE", f"{AJAX}/model-versions/delete", {"name": "guarded", "version": "1"}),
        ("POST", f"{API}/registered-models/rename", {"name": "guarded", "new_name": "other"}),
        ("POST", f"{AJAX}/model-versions/transition-stage", {"name": "guarded", "version": "1", "stage": "Archived"}),
        ("DELETE", f"{API}/registered-models/delete-tag", {"name": "guarded", "key": "perennial.ledger_head"}),
        ("POST", f"{API}/experiments/delete", {"experiment_id": "0"}),
        ("DELETE", "/api/2.0/mlflow-artifacts/artifacts/0/a.txt", None),
        ("POST", "/api/3.0/mlflow/users/permissions/grant",
         {"username": "ann", "resource_type": "registered_model", "resource_id": "guarded", "permission": "MANAGE"}),
        ("POST", "/api/3.0/mlflow/roles/assign", {"username": "steps", "role_id": 2}),
        ("POST", f"{API}/users/create", {"username": "eve", "password": "a long password"}),
        ("PATCH", f"{API}/users/update-admin", {"username": "steps", "is_admin": True}),
    ],
)  # fmt: skip
def test_only_an_administrator_deletes_renames_and_grants(
    server: Server, user: str, method: str, path: str, body: Any
) -> None:
    assert server.call(user, method, path, body).status_code == 403


def test_an_administrator_may_do_it_all(server: Server) -> None:
    made = {"name": "of the administrator"}
    assert server.call("admin", "POST", f"{API}/registered-models/create", made).ok
    assert server.call("admin", "DELETE", f"{API}/registered-models/delete", made).ok
    assert server.call("admin", "POST", f"{API}{ALIAS}", alias(server)).ok
    assert server.call("admin", "DELETE", f"{API}{ALIAS}", alias(server)).ok


@pytest.fixture
def spec(server: Server, empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A model with data, worked on by the user of the steps."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "steps")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS["steps"])
    spec = toys.model(tmp_path / "models", toys.unique(), gate={"external_change": "restore"})
    toys.publish(spec)
    return spec


def test_a_step_trains_as_one_user_and_promotes_as_another(
    spec: ModelSpec, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = str(train(spec, as_of=toys.LAST, reason="first")["version"])
    with pytest.raises(RegistryRequestError, match="only users with the role promotion") as refused:
        promote(spec, as_of=toys.LAST, actor="test")
    assert "connection perennial_mlflow_promotion" in refused.value.remedy
    connection = {"conn_type": "generic", "login": "promotion", "password": PASSWORDS["promotion"]}
    monkeypatch.setenv("AIRFLOW_CONN_PERENNIAL_MLFLOW_PROMOTION", json.dumps(connection))
    with airflow_connections.provided(spec, "train"):
        assert os.environ["MLFLOW_TRACKING_USERNAME"] == "steps"
    with airflow_connections.provided(spec, "promote"):
        assert promote(spec, as_of=toys.LAST, actor="test")["promoted"]
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == PASSWORDS["steps"]
    current = registry.get_version_by_alias(spec.name)
    assert current is not None and current.version == version
    _deviate(spec, server)
    _register_again(spec, server)


def _deviate(spec: ModelSpec, server: Server) -> None:
    """An administrator removes the alias: a step may not put it back and refuses; the user of promotions does."""
    body = {"name": spec.name, "alias": "champion"}
    assert server.call("admin", "DELETE", f"{API}{ALIAS}", body).ok
    deviation = champion.get_champion(spec, partition=toys.LAST, actor="score").deviation
    assert "; it was not put back: MLflow " in deviation
    with airflow_connections.provided(spec, "conclude"):
        assert not champion.get_champion(spec, partition=toys.LAST, actor="conclude").deviation
    restored = registry.get_version_by_alias(spec.name)
    assert restored is not None and restored.version == "1"


def _register_again(spec: ModelSpec, server: Server) -> None:
    """MLflow lost the model: a version with a number that the ledger has stays, unused, since no step may delete it."""
    assert server.call("admin", "DELETE", f"{API}/registered-models/delete", {"name": spec.name}).ok
    assert str(train(spec, as_of=toys.LAST, reason="again", force=True)["version"]) == "2"
    first = server.call("admin", "GET", f"{API}/model-versions/get?name={spec.name}&version=1").json()
    assert first["model_version"]["description"].startswith("Not used: the ledger has another version 1")


def test_a_promotion_goes_with_a_token_where_the_connection_has_no_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = toys.model(tmp_path / "models", "tokens")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "steps")
    monkeypatch.setenv(
        "AIRFLOW_CONN_PERENNIAL_MLFLOW_PROMOTION", json.dumps({"conn_type": "generic", "password": "t0ken"})
    )
    with airflow_connections.provided(spec, "rollback"):
        assert mlflow_api.request_credentials() == {
            "auth": None,
            "headers": {"Authorization": "Bearer t0ken"},
        }
    assert mlflow_api.request_credentials()["auth"] == ("steps", "")
    assert "MLFLOW_TRACKING_TOKEN" not in os.environ


def test_doctor_says_that_this_user_may_not_write_where_it_looks(spec: ModelSpec, server: Server) -> None:
    findings = {item.what: item for item in environment._mlflow(server.url)}
    assert findings["MLflow"].state == "ok"
    assert findings["MLflow: artifacts"].state == "warning"
    assert "administrator of MLflow" in findings["MLflow: artifacts"].remedy


def test_a_password_that_changed_is_set_again_and_a_short_one_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ensure, database = runpy.run_path(str(DOCKER / "users.py"))["ensure"], f"sqlite:///{tmp_path}/users.db"
    for user in ("admin", "steps", "promotion", "console"):
        monkeypatch.setenv(f"MLFLOW_{user.upper()}_PASSWORD", PASSWORDS[user])
    ensure(database)
    monkeypatch.setenv("MLFLOW_CONSOLE_PASSWORD", "another password")
    ensure(database)
    printed = capsys.readouterr().out
    assert "MLflow's user console: has a new password\n" in printed
    assert "MLflow's user steps: as before\n" in printed
    monkeypatch.setenv("MLFLOW_CONSOLE_PASSWORD", "short")
    with pytest.raises(
        SystemExit, match="set MLFLOW_CONSOLE_PASSWORD to a password of at least 12 characters"
    ):
        ensure(database)


@pytest.mark.parametrize("user", ["console", "steps", "promotion"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", f"{API}{ALIAS}?name=nothing&alias=champion", None),
        ("GET", f"{AJAX}/registered-models/get?name=nothing", None),
        ("GET", f"{API}/model-versions/get?name=guarded&version=99", None),
        ("GET", f"/get-artifact?run_uuid={'0' * 32}&path=a", None),
        ("GET", f"{AJAX}/logged-models/m-0/artifacts/files?artifact_file_path=a", None),
        ("GET", f"{API}/experiments/get-by-name?experiment_name=nothing", None),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_not_refused(
    server: Server, user: str, method: str, path: str, body: Any
) -> None:
    answer = server.call(user, method, path, body)
    assert answer.status_code == 404 and answer.json()["error_code"] == "RESOURCE_DOES_NOT_EXIST", answer.text


@pytest.mark.parametrize("name", ["MLFLOW_AUTH_DATABASE_URI", "MLFLOW_FLASK_SERVER_SECRET_KEY"])
def test_the_server_does_not_start_without_a_log_in(server: Server, name: str) -> None:
    done = script("server.py", server.environ | {name: ""})
    assert done.returncode == 1 and f"{name} is not set" in done.stderr and "What to do" in done.stderr
