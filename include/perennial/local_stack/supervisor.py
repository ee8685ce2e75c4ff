"""Restart the servers of a local stack that end: ``python -m perennial.local_stack.supervisor HOME``.

supervisord and circus do not fit: they leave behind what a killed server had started, which keeps its port in use or
runs its tasks a second time, and they cannot take over servers that already run, as is needed after the supervisor
itself was killed.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from perennial.core.errors import PerennialError
from perennial.local_stack import processes

FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0
#: A server that has run for so many seconds counts as sound: its next restart is immediate again.
STEADY = 60.0
POLL = 0.5
LOG_BYTES = 20_000_000
#: Has the supervisor start at once what waits for its restart.
RETRY_NOW = signal.SIGUSR1

log = logging.getLogger("supervisor")


@dataclass(frozen=True)
class PlannedServer:
    """A server to keep running.

    Attributes:
        name: of its record and its log.
        command: its arguments; the environment is the supervisor's.
        after: name of a command that has to succeed first.
        once: whether this is such a command: it runs until it has succeeded once.
    """

    name: str
    command: list[str]
    after: str | None = None
    once: bool = False


@dataclass(frozen=True)
class Plan:
    """What a supervisor keeps running, and on which internal ports.

    Attributes:
        servers: the servers, in the order of their start.
        ports: of the server that Airflow's tasks talk to, and of the log servers of scheduler and triggerer.
    """

    servers: tuple[PlannedServer, ...]
    ports: tuple[int, int, int]

    @property
    def names(self) -> set[str]:
        """The names of the servers."""
        return {server.name for server in self.servers}

    def write(self, state: Path) -> None:
        """Write the plan for the supervisor."""
        processes.write_record("plan", state, asdict(self))

    @classmethod
    def read(cls, state: Path) -> Plan | None:
        """The plan of the latest start; None if there is none."""
        content = processes.read_record("plan", state)
        try:
            task, worker_log, trigger_log = (int(port) for port in content["ports"])
            return cls(
                tuple(PlannedServer(**item) for item in content["servers"]), (task, worker_log, trigger_log)
            )
        except (KeyError, TypeError, ValueError):
            return None


@dataclass
class _Watched:
    """A server under supervision."""

    planned: PlannedServer
    process: psutil.Process | None = None
    finished: bool = False
    failures: int = 0
    started_at: float = 0.0
    retry_at: float = 0.0
    notes: dict[str, Any] = field(default_factory=lambda: {"restarts": 0})


class Supervisor:
    """Starts servers, and starts them again when they end, with growing delays.

    Args:
        home: the stack's home; records are in ``run``, logs in ``logs``.
        servers: what to keep running.
        first_delay: seconds before the first restart of a server; each further one waits twice as long.
    """

    def __init__(
        self, home: Path, servers: Sequence[PlannedServer], *, first_delay: float = FIRST_DELAY
    ) -> None:
        self._state, self._logs, self._first_delay = home / "run", home / "logs", first_delay
        self._watched = [_Watched(server) for server in servers]
        self._stopping = self._retry_now = False

    def stop(self, *_: int | FrameType | None) -> None:
        """End `run`; the servers keep running."""
        self._stopping = True

    def retry_now(self, *_: int | FrameType | None) -> None:
        """Start at once what waits for its restart."""
        self._retry_now = True

    def run(self) -> None:
        """Supervise until `stop` is called. Servers that run already are taken over."""
        for watched in self._watched:
            self._take_over(watched)
        while not self._stopping:
            if self._retry_now:
                self._retry_now = False
                for watched in self._watched:
                    watched.retry_at, watched.failures = 0.0, 0
            for watched in self._watched:
                try:
                    self._tend(watched)
                except Exception:  # a full disk, for example, must not end the supervision
                    log.exception("%s could not be tended", watched.planned.name)
            time.sleep(POLL)
        log.info("the supervisor ends; the servers keep running")

    def _take_over(self, watched: _Watched) -> None:
        name = watched.planned.name
        record = processes.read_record(name, self._state)
        watched.notes = {key: record[key] for key in ("restarts", "ended", "reason") if key in record}
        watched.notes.setdefault("restarts", 0)
        watched.process = processes.find_server(name, self._state)
        if watched.process:
            watched.started_at = time.monotonic()
            log.info("%s runs already (process %d)", name, watched.process.pid)
        elif "pid" in record:
            processes.kill_recorded_session(name, self._state)
            self._schedule(watched, "ended while no supervisor was running", record)

    def _tend(self, watched: _Watched) -> None:
        if watched.finished:
            return
        if watched.process is None:
            if time.monotonic() >= watched.retry_at and self._ready(watched.planned.after):
                self._start(watched)
        elif processes.is_alive(watched.process):
            if time.monotonic() - watched.started_at > STEADY:
                watched.failures = 0
        else:
            self._note_end(watched, watched.process)

    def _ready(self, after: str | None) -> bool:
        return all(watched.finished for watched in self._watched if watched.planned.name == after)

    def _start(self, watched: _Watched) -> None:
        planned = watched.planned
        file = self._logs / f"{planned.name}.log"
        if file.exists() and file.stat().st_size > LOG_BYTES:
            file.replace(file.with_suffix(".log.1"))
        try:
            watched.process = processes.start(
                planned.name, planned.command, os.environ, self._state, file, watched.notes
            )
        except PerennialError as error:
            self._schedule(watched, error.cause, {})
        else:
            watched.started_at = time.monotonic()
            log.info("%s started (process %d)", planned.name, watched.process.pid)

    def _note_end(self, watched: _Watched, process: psutil.Process) -> None:
        created = process.create_time()
        record = {"pid": process.pid, "created": created, "command": watched.planned.command}
        # before the process is reaped, while its id cannot be reused
        left = processes.kill_session(process.pid, created)
        code = _exit_code(process)
        watched.process = None
        if watched.planned.once and code == 0:
            watched.finished = True
            (self._state / f"{watched.planned.name}.json").unlink(missing_ok=True)
            log.info("%s has succeeded", watched.planned.name)
            return
        if left:
            log.info("killed %d processes that %s left behind", left, watched.planned.name)
        self._schedule(watched, _reason(code), record)

    def _schedule(self, watched: _Watched, reason: str, record: dict[str, Any]) -> None:
        """Have a server that has ended start again after its delay, and record why."""
        delay = min(LONGEST_DELAY, self._first_delay * 2 ** min(watched.failures, 10))
        watched.failures += 1
        watched.retry_at = time.monotonic() + delay
        watched.notes |= {
            "restarts": watched.notes["restarts"] + 1, "ended": time.time(), "reason": reason,
        }  # fmt: skip
        log.warning("%s %s; starting it again in %.0f s", watched.planned.name, reason, delay)
        retry = {"retry_at": time.time() + delay}
        processes.write_record(watched.planned.name, self._state, record | watched.notes | retry)


def _exit_code(process: psutil.Process) -> int | None:
    """The exit status of a process that has ended; None if another process had started it."""
    try:
        # Not at once: of a killed server the main thread may end before the others, and then there is no status yet.
        code = process.wait(timeout=1)
    except (psutil.Error, subprocess.TimeoutExpired):
        return None
    return None if code is None else int(code)


def _reason(code: int | None) -> str:
    if code is None:
        return "ended"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit status {code}"


def main(arguments: Sequence[str]) -> int:
    """Supervise the stack of a home folder as its plan says; returns 1 if another supervisor does."""
    home = Path(arguments[0])
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(message)s", level=logging.INFO)
    os.umask(0o077)
    plan = Plan.read(home / "run")
    if plan is None:
        log.error("%s holds no plan; `make start` writes it", home / "run")
        return 1
    with (home / "run" / "supervisor.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.error("another supervisor runs this stack")
            return 1
        supervisor = Supervisor(home, plan.servers)
        for kind in (signal.SIGTERM, signal.SIGINT):
            signal.signal(kind, supervisor.stop)
        signal.signal(RETRY_NOW, supervisor.retry_now)
        supervisor.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
