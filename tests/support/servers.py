"""Servers that tests run against: started on a free port, ended with everything they started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    """A port that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    with contextlib.suppress(OSError):  # Linux only: a killed test run leaves no server behind
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@contextlib.contextmanager
def running(
    command: list[str], url: str, log: Path, environ: dict[str, str], patience: float = 240
) -> Iterator[None]:
    """Run a server while the block runs; wait until ``url`` answers."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                                   preexec_fn=_die_with_parent, env=os.environ | environ)  # fmt: skip
    try:
        deadline = time.monotonic() + patience
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[2]} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


@contextlib.contextmanager
def mlflow(folder: Path) -> Iterator[str]:
    """Run an MLflow server with its store in ``folder``; yields its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
               "--artifacts-destination", str(folder / "artifacts"), "--workers", "1", "--host", "127.0.0.1",
               "--port", str(port), "--allowed-hosts", f"127.0.0.1:{port}"]  # fmt: skip
    environ = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "DO_NOT_TRACK": "true"}
    with running(command, f"{url}/api/2.0/mlflow/registered-models/search", folder / "mlflow.log", environ):
        yield url


@contextlib.contextmanager
def s3(folder: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """Run an S3 server (moto), in memory; yields its URL."""
    port = free_port()
    url = f"http://{host}:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
    with running(command, f"{url}/moto-api/data.json", folder / "s3.log", {}):
        yield url
