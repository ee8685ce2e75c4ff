"""Airflow's API server with the users and roles of its FAB auth manager, over a lake with models of every state.

``python -m support.console.fab_server PORT`` serves; `server` runs that, and `log_in` is a browser's way through the
form.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from perennial.core.settings import ROOT
from support import servers

#: Users and their roles. The role of ``mia`` is not one of Airflow's: she may look at one model.
USERS = {
    "vic": "Viewer", "ann": "User", "bob": "Op", "admin": "Admin", "pat": "Public", "mia": "One model",
    "tom": "team:tests", "eve": "team:flights",
}  # fmt: skip
PASSWORD = "a password of the tests"
#: The model that ``mia`` may see, in a lake with others.
ONE_MODEL = "well"


@dataclass(frozen=True)
class FabServer:
    """A running server.

    Attributes:
        url: its address.
        environment: variables of its process.
        database: file of Airflow's metadata.
        root: folder that contains home and models.
    """

    url: str
    environment: dict[str, str]
    database: Path
    root: Path


@contextlib.contextmanager
def server(root: Path) -> Iterator[FabServer]:
    """Run the server while the block runs, with all that it writes in an empty folder."""
    port = servers.free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        "AIRFLOW_HOME": str(root / "airflow"),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API_AUTH__JWT_SECRET": "0" * 64,
        "AIRFLOW__CORE__AUTH_MANAGER": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        # the tests log in more often than people do, and permissions that are added apply at once
        "AIRFLOW__FAB__AUTH_RATE_LIMITED": "False",
        "AIRFLOW__FAB__CACHE_TTL": "0",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "PERENNIAL_HOME": str(root / "home"),
        "PERENNIAL_MODELS": str(root / "models"),
        "PERENNIAL_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT / "include"), str(ROOT / "plugins"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        ),
    }  # fmt: skip
    command = [sys.executable, "-m", "support.console.fab_server", str(port)]
    with servers.running(command, f"{url}/api/v2/version", root / "server.log", environment):
        yield FabServer(url, environment, root / "airflow" / "airflow.db", root)


def log_in(url: str, user: str, path: str = "/perennial/") -> tuple[httpx.Client, httpx.Response]:
    """Follow a link to a page, through the log-in form where the server asks for it.

    Args:
        url: of the server.
        user: one of `USERS`.
        path: of the page.

    Returns:
        The browser, and what it shows at the end.
    """
    client = httpx.Client(base_url=url, timeout=60, trust_env=False, follow_redirects=True)
    form = client.get(path, headers={"Accept": "text/html"})
    token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', form.text)
    assert token, f"no form at {form.url}: {form.text[:500]}"
    login = {"username": user, "password": PASSWORD, "csrf_token": token[1]}
    page = client.post(form.url, data=login, headers={"Accept": "text/html"})
    client.headers["Sec-Fetch-Site"] = "same-origin"
    client.follow_redirects = False
    return client, page


def _serve(port: int) -> None:
    """Make lake, database and users; serve until the process is ended."""
    import uvicorn
    from airflow.api_fastapi.app import create_app
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from airflow.utils.db import initdb

    from perennial.ingestion import data_profile
    from support.console import world

    data_profile.write_profile = lambda *_: ""
    world.build(Path(os.environ["PERENNIAL_MODELS"]))
    initdb()
    DagBundlesManager().sync_bundles_to_db()
    sync_bag_to_db(DagBag(str(ROOT / "dags" / "models.py"), bundle_name="dags-folder"), "dags-folder", None)
    app = create_app(apps="core")
    _add_users()
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def _add_users() -> None:
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

    from perennial_airflow.dag_factory import team_roles

    team_roles.main()
    with get_application_builder() as builder:
        manager = builder.sm
        manager.sync_roles()
        rights = {("can_read", f"DAG:{ONE_MODEL}.{stage}") for stage in ("data", "monitor")}
        manager.bulk_sync_roles([{"role": USERS["mia"], "perms": rights}])
        for name, role in USERS.items():
            added = manager.add_user(
                name, name, "Tester", f"{name}@example.com", manager.find_role(role), PASSWORD
            )
            assert added, name


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
