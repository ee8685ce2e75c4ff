"""Airflow's whole API server over a lake with models of every state; nothing runs what is started there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from perennial.core.settings import ROOT
from support.console import world
from support.databases import airflow_metadata

#: Users of Airflow's simple auth manager, and their roles.
SIMPLE_USERS = "vic:viewer,ann:user,bob:op,admin:admin"


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The server; its ``state.models`` is the folder of the models."""
    from airflow.api_fastapi.app import create_app, purge_cached_app
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db

    root = tmp_path_factory.mktemp("api server")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PERENNIAL_LAKE", "PERENNIAL_LANDING"):
            patch.delenv(name, raising=False)
        patch.setenv("PERENNIAL_HOME", str(root / "home"))
        patch.setenv("PERENNIAL_MODELS", str(root / "models"))
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", SIMPLE_USERS)
        patch.setattr("perennial.ingestion.data_profile.write_profile", lambda *_: "")
        world.build(root / "models")
        airflow_metadata.create()
        DagBundlesManager().sync_bundles_to_db()
        bag = DagBag(str(ROOT / "dags" / "models.py"), bundle_name="dags-folder")
        assert "drifted.data" in bag.dags
        sync_bag_to_db(bag, "dags-folder", None)
        purge_cached_app()
        app = create_app(apps="core")
    app.state.models = root / "models"
    yield app
    purge_cached_app()


@pytest.fixture
def server_lake(api_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this process look at the server's lake and models, as the server itself does."""
    monkeypatch.setenv("PERENNIAL_HOME", str(api_server.state.models.parent / "home"))
    monkeypatch.setenv("PERENNIAL_MODELS", str(api_server.state.models))
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", SIMPLE_USERS)
