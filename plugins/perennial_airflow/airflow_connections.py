"""Hands Airflow's connections to databases, and MLflow's user of promotions, to the steps that run in this process.

A step in a pod gets its connections from Kubernetes secrets, as the compute profile says: nothing secret is in the
manifest of a pod. No step in a pod promotes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret

from perennial.core.errors import DatabaseRequestError
from perennial.databases import connections

if TYPE_CHECKING:
    from perennial.spec.model_spec import ModelSpec

#: Entries of a connection's *Extra* that are parameters of libpq; Airflow's hooks have others.
_PARAMETERS = (
    "application_name", "channel_binding", "connect_timeout", "gssencmode", "keepalives", "keepalives_count",
    "keepalives_idle", "keepalives_interval", "options", "passfile", "service", "sslcert", "sslcrl", "sslkey",
    "sslmode", "sslrootcert", "target_session_attrs", "tcp_user_timeout",
)  # fmt: skip
#: Steps that may move the champion, and the Airflow connection with the MLflow user that may.
PROMOTING_STEPS = frozenset({"promote", "conclude", "rollback"})
PROMOTION_CONNECTION = "perennial_mlflow_promotion"
_MLFLOW_VARIABLES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


@contextmanager
def provided(spec: ModelSpec, step: str) -> Iterator[None]:
    """Hand over the Airflow connections of a step while the block runs.

    A connection that the environment has is not looked up, and one that Airflow does not have is left out: the step
    says that it is not defined. Steps that may move the champion do so as the user of connection
    ``perennial_mlflow_promotion``; without one, as the user of all other steps.

    Args:
        spec: the model.
        step: name of the step.

    Raises:
        DatabaseRequestError: a connection is of another type.
    """
    uris = {}
    for name in spec.connections(step):
        if connections.is_defined(name):
            continue
        try:
            uris[name] = uri(name, Connection.get(name))
        except AirflowNotFoundException:
            continue
        mask_secret(uris[name])
    with ExitStack() as stack:
        stack.enter_context(connections.provided(uris))
        if step in PROMOTING_STEPS:
            stack.enter_context(_promotion_user())
        yield


@contextmanager
def _promotion_user() -> Iterator[None]:
    """Send requests to MLflow as the user of promotions while the block runs, if Airflow has its connection."""
    try:
        connection = Connection.get(PROMOTION_CONNECTION)
    except AirflowNotFoundException:
        yield
        return
    password = connection.password or ""
    mask_secret(password)
    user = (connection.login, password, None) if connection.login else (None, None, password)
    before = {name: os.environ.pop(name, None) for name in _MLFLOW_VARIABLES}
    try:
        os.environ.update({name: value for name, value in zip(_MLFLOW_VARIABLES, user, strict=True) if value})
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def uri(name: str, connection: Connection) -> str:
    """The URI of an Airflow connection.

    Args:
        name: its id.
        connection: of type ``postgres``, ``sqlite``, or ``generic`` with the whole URI as its password.

    Raises:
        DatabaseRequestError: it is of another type.
    """
    kind, password = connection.conn_type, connection.password or ""
    if kind == "generic" and "://" in password:
        return password
    if kind == "sqlite":
        path = connection.host or connection.schema or ""
        return f"sqlite:///{quote(path)}"
    if kind not in ("postgres", "postgresql"):
        raise DatabaseRequestError(
            f"Airflow connection {name} is of type {kind}",
            "make it one of type postgres or sqlite, or of type generic whose password is a URI (postgresql://, sqlite://)",
        )
    login = quote(connection.login or "", safe="") + (f":{quote(password, safe='')}" if password else "")
    port = f":{connection.port}" if connection.port else ""
    extra = connection.extra_dejson
    query = urlencode({key: extra[key] for key in _PARAMETERS if isinstance(extra.get(key), str | int)})
    return (
        f"postgresql://{login}{'@' if login else ''}{connection.host or ''}{port}/{quote(connection.schema or '')}"
        + (f"?{query}" if query else "")
    )
