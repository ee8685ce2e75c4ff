"""Write docker/.env with random passwords for compose.yaml, or add those that it lacks; readable by this user only."""

from __future__ import annotations

import os
import secrets
import sys
from base64 import urlsafe_b64encode
from pathlib import Path

FILE = Path(__file__).with_name(".env")


def passwords() -> dict[str, str]:
    """New random passwords, by variable."""
    names = ("POSTGRES_PASSWORD", "AIRFLOW_DB_PASSWORD", "MLFLOW_DB_PASSWORD", "MLFLOW_USERS_DB_PASSWORD",
             "AIRFLOW_PASSWORD", "AIRFLOW_SESSION_KEY", "AIRFLOW_TOKEN_KEY", "S3_SECRET_KEY", "MLFLOW_FORMS_KEY",
             "MLFLOW_ADMIN_PASSWORD", "MLFLOW_STEPS_PASSWORD", "MLFLOW_PROMOTION_PASSWORD",
             "MLFLOW_CONSOLE_PASSWORD")  # fmt: skip
    values = {name: secrets.token_hex(24) for name in names}
    values["AIRFLOW_FERNET_KEY"] = urlsafe_b64encode(secrets.token_bytes(32)).decode()
    values["S3_ACCESS_KEY"] = secrets.token_hex(10)
    return values


def main() -> None:
    """Add what is missing. What is there stays: the database in its volume keeps its password."""
    text = FILE.read_text("utf-8") if FILE.exists() else ""
    present = {line.partition("=")[0].strip() for line in text.splitlines()}
    missing = {name: value for name, value in passwords().items() if name not in present}
    if not missing:
        return
    with open(FILE, "a", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write("\n" if text and not text.endswith("\n") else "")
        file.write("".join(f"{name}={value}\n" for name, value in missing.items()))
    sys.stderr.write(f"wrote {len(missing)} new passwords to {FILE.parent.name}/{FILE.name}\n")


if __name__ == "__main__":
    main()
