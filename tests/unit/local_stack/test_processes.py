"""Servers are found again, and ended with everything they started, whatever happened in between."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from perennial.local_stack import processes

SLEEP = "import time; time.sleep(60)"
# a server that starts a child, which leaves the session, renames itself as Airflow does, and ignores a polite request
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True, env={})
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "a home"
    place.mkdir()
    yield place
    for process in processes.stack_processes(place):
        process.kill()


def start(home: Path, code: str, name: str = "airflow") -> psutil.Process:
    environ = {**os.environ, processes.ENVIRONMENT_MARK: str(home)}
    return processes.start(
        name, [sys.executable, "-c", code], environ, home / "run", home / "logs" / f"{name}.log"
    )


def test_a_started_server_is_found_and_stopped(home: Path) -> None:
    process = start(home, SLEEP)
    assert processes.find_server("airflow", home / "run") == process
    assert process in processes.stack_processes(home)
    assert processes.stop(home, patience=5) == 1
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert processes.find_server("airflow", home / "run") is None
    assert processes.stack_processes(home) == []


def test_children_that_left_the_session_are_ended_too(home: Path) -> None:
    start(home, STUBBORN)
    log = home / "logs" / "airflow.log"
    deadline = time.monotonic() + 20
    while "ready" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(processes.stack_processes(home)) == 2
    monkey = time.monotonic()
    assert processes.stop(home, patience=0.3) == 2
    assert time.monotonic() - monkey < 25
    assert processes.stack_processes(home) == []


def test_orphans_of_a_killed_server_are_found(home: Path) -> None:
    leader = start(home, STUBBORN)
    log = home / "logs" / "airflow.log"
    deadline = time.monotonic() + 20
    while "ready" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    leader.kill()
    leader.wait(5)
    assert processes.find_server("airflow", home / "run") is None
    assert len(processes.stack_processes(home)) == 1
    assert processes.stop(home, patience=0.3) == 1


def test_a_recycled_process_number_is_never_touched(home: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    try:
        (home / "run").mkdir()
        note = {"pid": bystander.pid, "created": psutil.Process(bystander.pid).create_time() - 3600}
        (home / "run" / "airflow.json").write_text(json.dumps(note))
        assert processes.find_server("airflow", home / "run") is None
        assert processes.stop(home, patience=1) == 0
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x", "created": 1}', '{"pid": 1}', "null"])
def test_a_damaged_note_counts_as_not_running(home: Path, content: str) -> None:
    (home / "run").mkdir()
    (home / "run" / "airflow.json").write_text(content)
    assert processes.find_server("airflow", home / "run") is None
    assert processes.stop(home, patience=1) == 0


def test_stopping_nothing_is_fine(home: Path) -> None:
    assert processes.stop(home, patience=1) == 0


def test_two_stacks_do_not_know_each_other(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "another home"
    mine, theirs = start(home, SLEEP), start(other, SLEEP)
    try:
        processes.stop(home, patience=5)
        assert not mine.is_running() or mine.status() == psutil.STATUS_ZOMBIE
        assert theirs.is_running() and theirs.status() != psutil.STATUS_ZOMBIE
    finally:
        processes.stop(other, patience=5)


def test_who_listens_on_a_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert f"process {os.getpid()}" in str(processes.port_user(port))
    assert processes.port_user(port) is None
