"""Start servers, and find and stop all their processes, even after a crash or a reboot."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from perennial.core.errors import PerennialError

#: Variable that every process of a stack carries, with the stack's home as its value.
ENVIRONMENT_MARK = "PERENNIAL_STACK"


def start(
    name: str,
    command: list[str],
    environ: Mapping[str, str],
    state: Path,
    log: Path,
    notes: Mapping[str, Any] | None = None,
) -> psutil.Process:
    """Start a server in a new session, append its output to `log`, and record it in `state` with `notes`.

    Raises:
        PerennialError: the command cannot be started or recorded.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        state.mkdir(parents=True, exist_ok=True)
        with open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as output:
            child = psutil.Popen(
                command,
                env=dict(environ),
                cwd=state,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise PerennialError(
            f"{name} cannot be started: {error}", "make setup, then run this again"
        ) from error
    # a process id may be reused; together with its start time it is unique
    identity = {"pid": child.pid, "created": child.create_time(), "command": command}
    try:
        write_record(name, state, {**identity, **(notes or {})})
    except OSError as error:
        child.kill()  # without a record nobody would find it
        child.wait()
        raise PerennialError(
            f"{name} cannot be recorded in {state}: {error}", "correct what it names, then run this again"
        ) from error
    return child


def write_record(name: str, state: Path, content: Mapping[str, Any]) -> None:
    """Write a server's record whole, readable by the owner only."""
    partial = state / f".{name}.part"
    with open(partial, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        json.dump(content, file)
    partial.replace(state / f"{name}.json")


def read_record(name: str, state: Path) -> dict[str, Any]:
    """A server's record; empty if there is none, or a damaged one."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads((state / f"{name}.json").read_text())
        if isinstance(content, dict):
            return content
    return {}


def find_server(name: str, state: Path) -> psutil.Process | None:
    """The recorded server, if its process still runs."""
    record = read_record(name, state)
    try:
        process = psutil.Process(int(record["pid"]))
        same = abs(process.create_time() - float(record["created"])) < 1
        return process if same and is_alive(process) else None
    except (KeyError, ValueError, TypeError, psutil.Error):
        return None


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that has ended and whose parent has not noticed it does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def stack_processes(home: Path) -> list[psutil.Process]:
    """Find every process of the stack at `home`, including orphans and those of other sessions.

    A process belongs to the stack by its environment mark, by its working folder (only the stack uses ``run``), or by
    the session of a recorded server. Airflow renames its processes, which overwrites the memory that holds the mark.
    """
    state = str(home / "run")
    sessions = _sessions(home / "run")
    processes = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            by_session = sessions.get(os.getsid(process.pid), float("inf")) <= process.create_time() + 1
            if by_session or process.environ().get(ENVIRONMENT_MARK) == str(home) or process.cwd() == state:
                processes[process.pid] = process
                processes |= {child.pid: child for child in process.children(recursive=True)}
    return list(processes.values())


def _recorded_names(state: Path) -> list[str]:
    return [path.stem for path in state.glob("*.json")]


def _sessions(state: Path) -> dict[int, float]:
    """Sessions of the recorded servers and when each began, except those whose process id was reused."""
    sessions = {}
    for name in _recorded_names(state):
        record = read_record(name, state)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            leader, created = int(record["pid"]), float(record["created"])
            if not _reused(leader, created):
                sessions[leader] = created
    return sessions


def _reused(pid: int, created: float) -> bool:
    """Whether another process has this id by now; the kernel gives it to none while a process of its session lives."""
    try:
        return abs(psutil.Process(pid).create_time() - created) >= 1
    except psutil.Error:
        return False


def kill_session(leader: int, created: float) -> int:
    """Kill what a server that has ended left behind in its session; returns how many processes there were.

    Args:
        leader: the server's process id.
        created: when that process was created, in seconds since 1970.
    """
    killed = set()
    for _ in range(10):  # a process may fork while the others are being killed
        processes = [] if _reused(leader, created) else _session_members(leader, created)
        if not processes:
            break
        for process in processes:
            killed.add(process.pid)
            _signal(process, signal.SIGKILL)
        _wait(processes, 5)
    return len(killed)


def kill_recorded_session(name: str, state: Path) -> int:
    """Kill what a recorded server that has ended left behind in its session; returns how many processes there were."""
    record = read_record(name, state)
    try:
        return kill_session(int(record["pid"]), float(record["created"]))
    except (KeyError, ValueError, TypeError):
        return 0


def _session_members(leader: int, created: float) -> list[psutil.Process]:
    members = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == leader or os.getsid(process.pid) != leader:
                continue
            if process.status() != psutil.STATUS_ZOMBIE and process.create_time() + 1 >= created:
                members[process.pid] = process
                members |= {child.pid: child for child in process.children(recursive=True)}
    return [process for process in members.values() if is_alive(process)]


def stop(home: Path, *, patience: float = 30) -> int:
    """Stop a stack: its supervisor, then its servers, then every process that is left.

    Returns the number of processes that were running.

    Raises:
        PerennialError: a process could not be ended.
    """
    state = home / "run"
    everything = {process.pid for process in stack_processes(home)}
    if supervisor := find_server("supervisor", state):  # first: it would start the others again
        _signal(supervisor, signal.SIGTERM)
        if not _wait([supervisor], 5):
            _signal(supervisor, signal.SIGKILL)
            _wait([supervisor], 5)
    servers = [process for name in _recorded_names(state) if (process := find_server(name, state))]
    for process in servers:
        _signal(process, signal.SIGTERM)
    _wait(servers, patience)
    for kind in (signal.SIGTERM, signal.SIGKILL):
        left = stack_processes(home)
        for process in left:
            _signal(process, kind)
        _wait(left, 10)
    if left := stack_processes(home):
        shown = ", ".join(f"{p.pid}" for p in left)
        raise PerennialError(
            f"these processes do not stop: {shown}", f"stop them by hand: kill -9 {shown.replace(',', '')}"
        )
    for name in _recorded_names(state):
        (state / f"{name}.json").unlink(missing_ok=True)
    return len(everything | {p.pid for p in servers})


def _signal(process: psutil.Process, kind: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):
        # psutil checks the start time first, so that a reused process id is not signalled
        process.send_signal(kind)


def _wait(processes: list[psutil.Process], seconds: float) -> bool:
    """Wait for the end of processes; returns whether all have ended.

    One whose parent never asks for its end, as the first process of a container may not, stays as a zombie.
    """
    deadline = time.monotonic() + seconds
    while any(map(is_alive, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def port_user(port: int) -> str | None:
    """Describe the process that listens on a local port; None if the port is free."""
    import socket

    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            if probe.connect_ex((host, port)) == 0:
                return _listener(port)
    return None


def _listener(port: int) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        for item in psutil.net_connections("tcp"):
            if item.status == psutil.CONN_LISTEN and item.laddr and item.laddr.port == port and item.pid:
                return f"process {item.pid} ({psutil.Process(item.pid).name()})"
    return "another process"
