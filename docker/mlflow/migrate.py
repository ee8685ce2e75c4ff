"""Bring MLflow's databases to the schema of this image's MLflow; an empty database gets its tables.

The server refuses a database with another schema and never migrates one. ``MLFLOW_BACKEND_STORE_URI`` is the
database's URL, and ``MLFLOW_AUTH_DATABASE_URI`` that of the users, which `users.py` creates. Only one process may do
this at a time. It cannot be undone: back up the databases before an upgrade.
"""

from __future__ import annotations

import os

import users
from alembic.util import CommandError


def main() -> None:
    """Migrate the databases; does nothing if their schemas are current and all users are there.

    Raises:
        SystemExit: a newer MLflow has migrated the database, or a user has no password.
    """
    from mlflow.db import upgrade
    from mlflow.store.db import utils

    uri = os.environ["MLFLOW_BACKEND_STORE_URI"]
    engine = utils.create_sqlalchemy_engine_with_retry(uri)
    before = utils._get_schema_version(engine)
    try:
        upgrade.callback(uri)
    except CommandError as error:
        raise SystemExit(
            f"error: MLflow's database has schema {before}, which this image's MLflow does not know: {error}\n"
            "  What to do: use the image of the MLflow that migrated it, or restore the backup made before that"
        ) from None
    after = utils._get_schema_version(engine)
    print(f"MLflow's database: schema {after}, {'as before' if after == before else f'was {before}'}")  # noqa: T201
    if database := os.environ.get("MLFLOW_AUTH_DATABASE_URI"):
        users.ensure(database)


if __name__ == "__main__":
    main()
