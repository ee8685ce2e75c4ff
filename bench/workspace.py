"""The work folder that the parts share: the sample, an MLflow, a champion, and many copies of the flights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from perennial.core.settings import ROOT
from perennial.local_stack import config, processes, servers

FLIGHTS = 336_776
MODEL = "flight_late"
#: The champion is trained on the first quarter.
TRAINED_UNTIL = "2013-03-31"
FIRST, LAST = "2013-01-01", "2013-12-31"


@dataclass(frozen=True)
class Measured:
    """The result of one process, its duration, and its peak resident memory in MiB."""

    result: dict[str, Any]
    seconds: float
    memory_mb: float

    def __getitem__(self, name: str) -> Any:
        return self.result[name]


@dataclass
class Workspace:
    """A work folder; MLflow starts when it is first needed and stops at the end of the block."""

    folder: Path
    copies: int
    console: Console
    _mlflow: str = ""
    _sessions: list[Path] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for home in dict.fromkeys(self._sessions):
            processes.stop(home)

    @property
    def home(self) -> Path:
        """Working folder of all parts except the live stacks."""
        return self.folder / "home"

    @property
    def landing(self) -> Path:
        """The landing area, which all parts share."""
        return self.folder / "landing"

    @property
    def quick(self) -> bool:
        """Whether a few rows and repetitions are enough."""
        return self.copies < 10

    @property
    def rows(self) -> int:
        """Rows of the large tables."""
        return self.copies * FLIGHTS

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a measured process."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PERENNIAL_", "AIRFLOW"))}
        paths = [ROOT / "include", ROOT / "plugins", ROOT / "tests", ROOT]
        variables = {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PERENNIAL_HOME": str(self.home),
            "PERENNIAL_LANDING": str(self.landing),
            "MLFLOW_TRACKING_URI": self._mlflow or "http://127.0.0.1:9",
            "DO_NOT_TRACK": "true",
            "GX_ANALYTICS_ENABLED": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_WAIT_POLICY": "PASSIVE",
            "GOMP_SPINCOUNT": "1000",
            "NO_PROXY": "localhost,127.0.0.1",
            "no_proxy": "localhost,127.0.0.1",
        }
        return inherited | variables | more

    def measure(self, task: str, *, env: dict[str, str] | None = None, **arguments: Any) -> Measured:
        """Run a function of `bench.tasks` in a separate process.

        Raises:
            RuntimeError: it failed, with the end of its error output.
        """
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            answer = Path(scratch, "answer.json")
            command = [sys.executable, "-m", "bench.tasks", task, json.dumps(arguments), str(answer)]
            began = time.monotonic()
            done = subprocess.run(
                command, env=self.environment(**(env or {})), cwd=self.folder, capture_output=True, text=True
            )
            seconds = time.monotonic() - began
            if done.returncode or not answer.exists():
                raise RuntimeError(f"{task} ended with {done.returncode}: {done.stderr.strip()[-1500:]}")
            content = json.loads(answer.read_text())
        return Measured(content["result"], seconds, content["memory_mb"])

    def prepare(self) -> dict[str, str]:
        """Start MLflow, land the sample, publish the year, train a champion; returns environment variables to add."""
        self.mlflow()
        if not (self.home / "prepared").exists():
            self.measure("prepare")
            (self.home / "prepared").touch()
        return {}

    def large_lake(self) -> dict[str, str]:
        """As `prepare`, with a lake that holds many copies of the year's rows and labels."""
        self.prepare()
        lake = self.folder / f"lake-{self.copies}"
        if not (lake / "done").exists():
            shutil.rmtree(lake, ignore_errors=True)
            shutil.copytree(self.home / "lake", lake)  # with the ledger, which says who is champion
            self.measure("replicate", env={"PERENNIAL_LAKE": str(lake)}, copies=self.copies)
            (lake / "done").touch()
        return {"PERENNIAL_LAKE": str(lake)}

    def large_file(self) -> Path:
        """One landed partition with the rows of all copies."""
        self.prepare()
        path = self.folder / f"flights-{self.copies}" / f"{LAST}.parquet"
        if not path.exists():
            self.measure("one_file", path=str(path), copies=self.copies)
        return path

    def mlflow(self) -> None:
        """Start the workspace's MLflow, unless it runs."""
        self._mlflow = self._mlflow or self.start_mlflow(self.home)

    def start_mlflow(self, home: Path) -> str:
        """Start an MLflow in a working folder; returns its address."""
        port = free_port()
        (home / "mlflow").mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--backend-store-uri", config.sqlite(home / "mlflow" / "mlflow.db"), "--workers", "1"]
        command += ["--artifacts-destination", str(home / "mlflow" / "artifacts")]
        command += ["--allowed-hosts", f"127.0.0.1:{port}"]
        environ = self.environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", PERENNIAL_STACK=str(home))
        self.stop_at_exit(home)
        processes.start("mlflow", command, environ, home / "run", home / "logs" / "mlflow.log")
        stack = config.Stack(home, mlflow_port=port)
        end = time.monotonic() + 120
        while not servers.mlflow_works(stack):
            if time.monotonic() > end:
                raise RuntimeError(f"MLflow does not start; see {home / 'logs' / 'mlflow.log'}")
            time.sleep(0.2)
        return f"http://127.0.0.1:{port}"

    def stop_at_exit(self, home: Path) -> None:
        """Stop the servers of this working folder at the end of the block."""
        self._sessions.append(home)


def free_port() -> int:
    """A port that is not in use."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
