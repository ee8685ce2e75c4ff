"""Connections to databases, from Airflow's connections to the steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perennial.core.errors import DatabaseRequestError
from perennial.databases import connections
from perennial.spec.model_spec import ModelSpec
from perennial_airflow import airflow_connections
from support import toys

SOURCE = {"sql": "SELECT * FROM t WHERE seen_at >= {start} AND seen_at < {end}", "connection": "shop"}


@pytest.fixture
def queried(tmp_path: Path) -> ModelSpec:
    return toys.model(tmp_path / "models", "queried", data={"source": SOURCE})


@pytest.mark.parametrize(
    ("content", "uri"),
    [
        (
            {"conn_type": "postgres", "host": "db", "login": "ann", "password": "p@ss/word", "schema": "shop",
             "port": 5433, "extra": {"sslmode": "require", "cursor": "dictcursor"}},
            "postgresql://ann:p%40ss%2Fword@db:5433/shop?sslmode=require",
        ),
        ({"conn_type": "postgres", "host": "db"}, "postgresql://db/"),
        ({"conn_type": "generic", "password": "postgresql://ann:pw@db/shop"}, "postgresql://ann:pw@db/shop"),
        ({"conn_type": "sqlite", "host": "/data/shop.db"}, "sqlite:////data/shop.db"),
        ("sqlite:////data/shop.db", "sqlite:////data/shop.db"),
    ],
)  # fmt: skip
def test_a_step_gets_the_airflow_connection_of_its_query(
    queried: ModelSpec, monkeypatch: pytest.MonkeyPatch, content: dict[str, object] | str, uri: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SHOP", content if isinstance(content, str) else json.dumps(content))
    with airflow_connections.provided(queried, "data"):
        assert connections.find("shop").uri == uri
    assert not connections.is_defined("shop")
    with airflow_connections.provided(queried, "train"):
        assert not connections.is_defined("shop")


def test_the_environment_comes_first_and_a_connection_that_is_not_there_is_no_error(
    queried: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with airflow_connections.provided(queried, "data"):
        assert not connections.is_defined("shop")
    monkeypatch.setenv("PERENNIAL_CONNECTION_SHOP", "sqlite:////data/other.db")
    monkeypatch.setenv("AIRFLOW_CONN_SHOP", "sqlite:////data/shop.db")
    with airflow_connections.provided(queried, "data"):
        assert str(connections.find("shop").path) == "/data/other.db"


def test_a_connection_of_another_type_is_refused_without_its_password(
    queried: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SHOP", "mysql://ann:secret@db/shop")
    with (
        pytest.raises(DatabaseRequestError, match="is of type mysql") as caught,
        airflow_connections.provided(queried, "data"),
    ):
        pass
    assert "secret" not in str(caught.value)
