"""Create missing databases of a Postgres server, each with its own user.

``DATABASES`` names them, separated by spaces; ``<NAME>_DB_PASSWORD`` holds each one's password. libpq's own variables
(``PGHOST``, ``PGUSER``, ``PGPASSWORD``) name the server and the user.
"""

from __future__ import annotations

import os

import psycopg2
from psycopg2 import sql


def main() -> None:
    """Create what is missing; a changed password is set again."""
    connection = psycopg2.connect(dbname="postgres", connect_timeout=10)
    connection.autocommit = True  # CREATE DATABASE takes no transaction
    with connection.cursor() as cursor:
        for name in os.environ["DATABASES"].split():
            user = sql.Identifier(name)
            password = sql.Literal(os.environ[f"{name.upper()}_DB_PASSWORD"])
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name])
            verb = sql.SQL("ALTER" if cursor.fetchone() else "CREATE")
            cursor.execute(sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(verb, user, password))
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
            if not cursor.fetchone():
                cursor.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(user, user))
            print(f"database {name}: there")  # noqa: T201
    connection.close()


if __name__ == "__main__":
    main()
