"""Write docker/.env with random passwords for compose.yaml, if it is missing; readable by this user only."""

from __future__ import annotations

import os
import secrets
import sys
from base64 import urlsafe_b64encode
from pathlib import Path

FILE = Path(__file__).with_name(".env")


def content() -> str:
    """The file's text, with new random passwords."""
    names = ("POSTGRES_PASSWORD", "AIRFLOW_DB_PASSWORD", "MLFLOW_DB_PASSWORD", "AIRFLOW_PASSWORD",
             "AIRFLOW_SESSION_KEY", "AIRFLOW_TOKEN_KEY", "S3_SECRET_KEY")  # fmt: skip
    values = {name: secrets.token_hex(24) for name in names}
    values["AIRFLOW_FERNET_KEY"] = urlsafe_b64encode(secrets.token_bytes(32)).decode()
    values["S3_ACCESS_KEY"] = secrets.token_hex(10)
    return "".join(f"{name}={value}\n" for name, value in values.items())


def main() -> None:
    """Write the file unless it is there: the database in its volume keeps its password."""
    try:
        with open(FILE, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(content())
    except FileExistsError:
        return
    sys.stderr.write(f"wrote {FILE.parent.name}/{FILE.name} with new passwords\n")


if __name__ == "__main__":
    main()
