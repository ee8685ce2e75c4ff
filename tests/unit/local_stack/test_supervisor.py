"""What ends is started again, whoever ended it, and what it left behind does not get in the way."""

from __future__ import annotations

import itertools
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from perennial.core.settings import ROOT
from perennial.local_stack import processes
from perennial.local_stack.supervisor import RETRY_NOW, Plan, PlannedServer, Supervisor
from support.servers import free_port

SLEEP = "import time; time.sleep(60)"
#: A server whose child holds its port, as MLflow's does.
PARENT = """
import subprocess, sys, time
child = "import socket, time; s = socket.create_server(('127.0.0.1', {port})); print('bound', flush=True); "
child = subprocess.Popen([sys.executable, "-c", child + "time.sleep(60)"])
sys.exit(child.wait())
"""
FAILING = "import sys, time; print(time.time(), flush=True); sys.exit(3)"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "a home"
    for made in (folder, folder / "run", folder / "logs"):
        made.mkdir()
    yield folder
    processes.stop(folder, patience=5)


def server(name: str, code: str, **options: Any) -> PlannedServer:
    return PlannedServer(name, [sys.executable, "-c", code], **options)


def supervise(home: Path, *servers: PlannedServer) -> psutil.Process:
    Plan(servers, (1, 2, 3)).write(home / "run")
    environ = {
        **os.environ, "PYTHONPATH": str(ROOT / "include"), processes.ENVIRONMENT_MARK: str(home)
    }  # fmt: skip
    command = [sys.executable, "-m", "perennial.local_stack.supervisor", str(home)]
    return processes.start("supervisor", command, environ, home / "run", home / "logs" / "supervisor.log")


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return value


def running(home: Path, name: str) -> psutil.Process:
    return until(lambda: processes.find_server(name, home / "run"))


def kill(process: psutil.Process) -> None:
    process.kill()
    until(lambda: not processes.is_alive(process))


def test_a_killed_server_comes_back_and_its_orphan_does_not_hold_the_port(home: Path) -> None:
    port = free_port()
    supervise(home, server("mlflow", PARENT.format(port=port)))
    log = home / "logs" / "mlflow.log"
    first = running(home, "mlflow")
    until(lambda: log.exists() and log.read_text().count("bound") == 1)
    kill(first)
    until(lambda: log.read_text().count("bound") == 2)
    assert "Address already in use" not in log.read_text()
    record = processes.read_record("mlflow", home / "run")
    assert (record["restarts"], record["reason"]) == (1, "was killed by SIGKILL")
    assert time.time() - record["ended"] < 60 and "retry_at" not in record
    told = (home / "logs" / "supervisor.log").read_text()
    assert "mlflow was killed by SIGKILL; starting it again in 1 s" in told
    assert "killed 1 processes that mlflow left behind" in told


def test_each_restart_of_a_failing_server_waits_longer(home: Path) -> None:
    supervisor = Supervisor(home, [server("scheduler", FAILING), server("sound", SLEEP)], first_delay=0.6)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        log = home / "logs" / "scheduler.log"
        until(lambda: log.exists() and log.read_text().count("\n") >= 4)
    finally:
        supervisor.stop()
        thread.join()
    starts = [float(line) for line in log.read_text().split()]
    pauses = [after - before for before, after in itertools.pairwise(starts)]
    assert pauses[0] >= 0.6 and pauses[0] + 0.3 < pauses[1] and pauses[1] + 0.6 < pauses[2]
    record = processes.read_record("scheduler", home / "run")
    assert record["reason"] == "ended with exit status 3" and record["restarts"] >= 3
    assert processes.read_record("sound", home / "run")["restarts"] == 0


def test_a_server_waits_for_the_command_that_has_to_succeed_first(home: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    migration = server("database", f"import os, sys; sys.exit(not os.path.exists({str(ready)!r}))", once=True)
    supervise(home, migration, server("scheduler", SLEEP, after="database"))
    until(lambda: processes.read_record("database", home / "run").get("restarts"))
    assert processes.read_record("scheduler", home / "run") == {}
    ready.touch()
    running(home, "scheduler")
    assert processes.read_record("database", home / "run") == {}


def test_after_the_supervisor_was_killed_another_takes_over_what_runs(home: Path) -> None:
    plan = [server("triggerer", SLEEP), server("scheduler", SLEEP)]
    killed = supervise(home, *plan)
    triggerer, scheduler = running(home, "triggerer"), running(home, "scheduler")
    kill(killed)
    assert processes.is_alive(triggerer) and processes.is_alive(scheduler)
    kill(scheduler)
    supervise(home, *plan)
    until(
        lambda: (
            processes.read_record("scheduler", home / "run").get("restarts") and running(home, "scheduler")
        )
    )
    assert running(home, "triggerer") == triggerer
    assert (
        processes.read_record("scheduler", home / "run")["reason"] == "ended while no supervisor was running"
    )
    kill(triggerer)  # it is no child of the second supervisor
    assert until(lambda: processes.read_record("triggerer", home / "run").get("restarts")) == 1
    assert running(home, "triggerer") != triggerer


def test_two_supervisors_of_one_stack_do_not_start_everything_twice(home: Path) -> None:
    supervise(home, server("scheduler", SLEEP))
    first = running(home, "scheduler")
    second = subprocess.run(
        [sys.executable, "-m", "perennial.local_stack.supervisor", str(home)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "include")}, capture_output=True, text=True,
    )  # fmt: skip
    assert second.returncode == 1 and "another supervisor runs this stack" in second.stdout
    assert running(home, "scheduler") == first


def test_a_start_by_hand_ends_the_wait(home: Path) -> None:
    supervisor = Supervisor(home, [server("scheduler", FAILING)], first_delay=60)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        log = home / "logs" / "scheduler.log"
        until(lambda: processes.read_record("scheduler", home / "run").get("retry_at"))
        supervisor.retry_now()
        until(lambda: log.read_text().count("\n") == 2)
    finally:
        supervisor.stop()
        thread.join()


def test_the_signal_that_ends_the_wait_does_not_end_the_supervisor(home: Path) -> None:
    process = supervise(home, server("scheduler", SLEEP))
    running(home, "scheduler")
    process.send_signal(RETRY_NOW)
    time.sleep(1)
    assert processes.is_alive(process)


@pytest.mark.parametrize("supervisor", ["running", "killed"])
def test_a_stop_leaves_nothing_and_nothing_comes_back(home: Path, supervisor: str) -> None:
    process = supervise(home, server("scheduler", SLEEP), server("mlflow", PARENT.format(port=free_port())))
    running(home, "scheduler"), running(home, "mlflow")
    until(lambda: len(processes.stack_processes(home)) == 4)
    if supervisor == "killed":
        kill(process)
    assert processes.stop(home, patience=5) == (3 if supervisor == "killed" else 4)
    time.sleep(1.5)
    assert processes.stack_processes(home) == []


def test_what_servers_write_is_readable_by_their_owner_only(home: Path) -> None:
    code = "import pathlib, time; pathlib.Path('../written').touch(); time.sleep(60)"
    supervise(home, server("scheduler", code))
    until((home / "written").exists)
    files = [home / "written", *home.glob("logs/*"), *home.glob("run/*")]
    assert len(files) >= 5
    assert [path for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
