"""Start MLflow's server with a log-in: ``python server.py``, and arguments of ``mlflow server``.

``MLFLOW_AUTH_DATABASE_URI`` is the URL of the database of users, which `migrate.py` prepares, and
``MLFLOW_FLASK_SERVER_SECRET_KEY`` signs forms. MLflow reads the former from a file only, which is written here.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
#: Users without a grant read; checked passwords count for a minute in each process of the server.
CONFIGURATION = """\
[mlflow]
default_permission = READ
database_uri = {database}
admin_username = admin
authorization_function = authorization:authenticate
auth_cache_ttl_seconds = 60
"""


def main() -> None:
    """Write MLflow's configuration and become its server.

    Raises:
        SystemExit: a variable is missing.
    """
    for name in ("MLFLOW_AUTH_DATABASE_URI", "MLFLOW_FLASK_SERVER_SECRET_KEY"):
        if not os.environ.get(name):
            raise SystemExit(
                f"error: {name} is not set, without which MLflow has no log-in\n"
                "  What to do: set it (docker/README.md); behind a proxy that has users of its own, start "
                "`mlflow server` instead of this script"
            )
    database = os.environ["MLFLOW_AUTH_DATABASE_URI"].replace("%", "%%")
    handle, path = tempfile.mkstemp(prefix="basic_auth-", suffix=".ini")  # readable by this user only
    os.close(handle)
    Path(path).write_text(CONFIGURATION.format(database=database), "utf-8")
    os.environ["MLFLOW_AUTH_CONFIG_PATH"] = path
    # routes that MLflow has no rule for are refused
    os.environ["MLFLOW_BASIC_AUTH_FAIL_CLOSED"] = "true"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])
    arguments = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", *sys.argv[1:]]
    os.execv(sys.executable, arguments)


if __name__ == "__main__":
    main()
