"""Start servers, and find and stop all their processes, even after a crash or a reboot."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from perennial.core.errors import PerennialError

#: Variable that every process of a stack carries, with the stack's home as its value.
ENVIRONMENT_MARK = "PERENNIAL_STACK"


def start(
    name: str, command: list[str], environ: Mapping[str, str], state: Path, log: Path
) -> psutil.Process:
    """Start a server in a new session, append its output to `log`, and record it in `state`.

    Raises:
        PerennialError: the command cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    state.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(
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
    process = psutil.Process(child.pid)
    # a process id may be reused; together with its start time it is unique
    note = {"pid": child.pid, "created": process.create_time(), "command": command}
    (state / f"{name}.json").write_text(json.dumps(note))
    return process


def find_server(name: str, state: Path) -> psutil.Process | None:
    """The recorded server, if its process still runs."""
    try:
        note = json.loads((state / f"{name}.json").read_text())
        process = psutil.Process(int(note["pid"]))
        alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return process if alive and abs(process.create_time() - float(note["created"])) < 1 else None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None


def stack_processes(home: Path) -> list[psutil.Process]:
    """Find every process of the stack at `home`, including orphans and those of other sessions.

    A process belongs to the stack by its environment mark, by its working folder (only the stack uses ``run``), or by
    the session of a recorded server. Airflow renames its processes, which overwrites the memory that holds the mark.
    """
    state = str(home / "run")
    sessions = _sessions(home / "run")
    own_pid = os.getpid()
    processes = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == own_pid or process.status() == psutil.STATUS_ZOMBIE:
                continue
            by_session = sessions.get(os.getsid(process.pid), float("inf")) <= process.create_time() + 1
            if by_session or process.environ().get(ENVIRONMENT_MARK) == str(home) or process.cwd() == state:
                processes[process.pid] = process
                processes |= {child.pid: child for child in process.children(recursive=True)}
    return list(processes.values())


def _sessions(state: Path) -> dict[int, float]:
    """Sessions of the recorded servers and when each began, except those whose process id was reused."""
    sessions = {}
    for note in state.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(note.read_text())
            leader, created = int(content["pid"]), float(content["created"])
            try:
                if abs(psutil.Process(leader).create_time() - created) >= 1:
                    continue
            except psutil.Error:
                pass  # it has ended; the kernel does not reuse its id while a process of its session lives
            sessions[leader] = created
    return sessions


def lost_child(server: psutil.Process) -> bool:
    """Whether a child of the server has ended while the server keeps running."""
    with contextlib.suppress(psutil.Error):
        return any(child.status() == psutil.STATUS_ZOMBIE for child in server.children())
    return False


def stop(home: Path, names: Iterable[str], *, patience: float = 30) -> int:
    """Stop a stack: interrupt its servers, then terminate, then kill its processes.

    Returns the number of processes that were running.

    Airflow's standalone orphans its children on SIGTERM and stops them on SIGINT, so SIGINT comes first.

    Raises:
        PerennialError: a process could not be ended.
    """
    state = home / "run"
    servers = [process for name in names if (process := find_server(name, state))]
    everything = stack_processes(home)
    for process in servers:
        _signal(process, signal.SIGINT)
    _wait(servers, patience)
    for kind, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        left = stack_processes(home)
        if not left:
            break
        for process in left:
            _signal(process, kind)
        _wait(left, seconds)
    if left := stack_processes(home):
        shown = ", ".join(f"{p.pid}" for p in left)
        raise PerennialError(
            f"these processes do not stop: {shown}", f"stop them by hand: kill -9 {shown.replace(',', '')}"
        )
    for name in names:
        (state / f"{name}.json").unlink(missing_ok=True)
    return len({p.pid for p in [*servers, *everything]})


def _signal(process: psutil.Process, kind: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(
            kind
        )  # psutil checks the start time first, so that a reused process id is not signalled


def _wait(processes: list[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    psutil.wait_procs(processes, timeout=max(0.0, deadline - time.monotonic()))


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
