"""The commands behind make: ``python -m perennial.local_stack run | start | stop | status | clean``."""

from __future__ import annotations

import argparse
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from perennial.core.errors import LockHeldError, PerennialError
from perennial.core.runtime import flush_and_exit
from perennial.local_stack import components, processes, servers
from perennial.local_stack.config import Stack, login_hint, protect, stack
from perennial.local_stack.progress import ProgressDisplay


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 after an error, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m perennial.local_stack", description=__doc__)
    parser.add_argument("command", choices=["run", "start", "stop", "status", "clean"])
    command = parser.parse_args(arguments).command
    console = Console(highlight=False)
    os.umask(0o077)  # what is written below the home is its owner's business
    try:
        config = stack()
        if command == "status":
            return status(config, console)
        if command == "stop":
            return stop(config, console)
        if command == "clean":
            servers.remove_everything(config)
            console.print(f"Stopped; everything in {config.home} was removed.", soft_wrap=True)
            return 0
        with hold_stack_lock(config):
            if command == "run":
                from perennial.local_stack.demo import run

                return run(config, console)
            with ProgressDisplay() as progress:
                servers.start_all(config, progress)
            return status(config, console)
    except PerennialError as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print(
            "\nInterrupted. `make run` continues from here, `make stop` stops the servers."
        )
        return 130


@contextmanager
def hold_stack_lock(config: Stack) -> Iterator[None]:
    """Hold the lock of a stack's home while the block runs, so that only one process starts the stack.

    The kernel releases the lock if the process dies.

    Raises:
        LockHeldError: another process holds it.
    """
    protect(config.home)
    with (config.home / ".running").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise LockHeldError(
                f"process {file.read().strip()} is already running this stack",
                "wait until it ends, or stop it with Ctrl-C",
            ) from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def stop(config: Stack, console: Console) -> int:
    """Stop the servers."""
    count = servers.stop_all(config)
    console.print(f"Stopped {count} processes; none is left." if count else "Nothing was running.")
    return 0


def status(config: Stack, console: Console) -> int:
    """Print the state of each component, what to do, and where all is; returns 0 if everything works, else 3."""
    config = servers.planned_stack(config)
    airflow = servers.client(config)
    try:
        states = components.states(config, airflow)
    finally:
        airflow.close()
    lines = [f"Airflow  {config.airflow_url}", f"MLflow   {config.mlflow_url}", ""]
    for state in states:
        lines.append(f"  {state.label:<18}  {state.text}")
        if state.remedy:
            lines.append(f"  {'':<18}  What to do: {state.remedy}")
    count = len(processes.stack_processes(config.home))
    lines += ["", login_hint(config), f"{count} processes; data and logs: {config.home}"]
    console.print("\n".join(lines), markup=False, soft_wrap=True)
    return 0 if all(state.works for state in states) else 3


if __name__ == "__main__":
    flush_and_exit(main())
