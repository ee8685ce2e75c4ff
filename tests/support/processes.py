"""Steps in separate processes, which share the lake with others or are killed during a write.

Processes are forked from a server that has the libraries imported, so that they start fast.
"""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest


@functools.cache
def _context() -> Any:
    """The server that forks processes, started once.

    Python 3.11 does not tell it this process's ``sys.path``, and it skips silently what it cannot import.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()
    return context


def start(target: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Run a function of a module of `support` in another process, with this one's environment."""
    process: BaseProcess = _context().Process(target=_run, args=(dict(os.environ), target.__module__, target.__name__,
                                                                 arguments), daemon=True)  # fmt: skip
    process.start()
    return process


def wait(*processes: BaseProcess, timeout: float = 120) -> list[int | None]:
    """Wait for processes, and kill those that do not end; returns their exit codes."""
    for process in processes:
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join(10)
    return [p.exitcode for p in processes]


def _run(environ: dict[str, str], module: str, name: str, arguments: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environ)
    getattr(importlib.import_module(module), name)(*arguments)


def step(folder: str, name: str, arguments: dict[str, Any], answer: str = "") -> None:
    """Run one step of the model in ``folder``; the result, or the error's text, goes into the file ``answer``.

    It draws no page: Evidently takes seconds in each process.
    """
    from perennial.core.errors import PerennialError
    from perennial.spec.catalog import load_model
    from perennial.steps import dispatch

    _draw_no_pages()
    try:
        outcome: dict[str, Any] = {"result": dispatch.run(name, load_model(Path(folder)), **arguments)}
    except PerennialError as error:
        outcome = {"error": type(error).__name__, "text": str(error)}
    if answer:
        Path(answer).write_text(json.dumps(outcome))
    if "error" in outcome:
        sys.stderr.write(outcome["text"])  # pytest shows it if a test fails because of it
        sys.exit(3)


def incident(folder: str, day: str, signals: tuple[str, ...]) -> None:
    """Record that these signals of the model in ``folder`` are bad."""
    from perennial.alerting import incidents
    from perennial.spec.catalog import load_model

    incidents.record_signals(
        load_model(Path(folder)), day, {name: incidents.SignalObservation("bad", "why") for name in signals}
    )


def killed_step(
    folder: str, name: str, arguments: dict[str, Any], function: str, moment: str, nth: int
) -> None:
    """Run one step, and kill this process with SIGKILL at the ``nth`` call of a function.

    Args:
        folder: of the model.
        name: name of the step.
        arguments: of the step.
        function: dotted name of the function.
        moment: ``before`` the call, ``after`` it, or ``during`` it: once the first rows of
            `delta_tables.Writer.replace` are read.
        nth: number of the call, from 1.
    """
    _kill_at_call(function, moment, nth)
    step(folder, name, arguments)


def data_step(
    spec: str, suite: str, day: str, answer: str = "", function: str = "", moment: str = "", nth: int = 1
) -> None:
    """Run the data step of a spec (JSON) without a data profile; killed as `killed_step` if ``function`` is given."""
    from perennial.spec.model_spec import ModelSpec
    from perennial.steps import data

    model = ModelSpec.model_validate_json(spec)
    model._suite = suite
    _draw_no_pages()
    if function:
        _kill_at_call(function, moment, nth)
    result = data.data(model, start=day, end=day)
    if answer:
        Path(answer).write_text(json.dumps(result))


def data_steps(spec: str, suite: str, days: tuple[str, ...]) -> None:
    """Run the data step of a spec (JSON) for one partition after the other, in this order."""
    from perennial.core.errors import DataError

    for day in days:
        try:
            data_step(spec, suite, day)
        except DataError as error:  # a partition that is stopped in any order
            sys.stderr.write(f"{error}\n")


def _draw_no_pages() -> None:
    """Leave out the data profile and Evidently's part of the report."""
    from perennial.ingestion import data_profile
    from perennial.monitoring import report

    data_profile.write_profile = lambda *_: ""
    report.evidently_drift_report = lambda *_: report.DriftReport()


def _kill_at_call(dotted_name: str, moment: str, nth: int) -> None:
    """Replace a function by one that kills this process at its ``nth`` call."""
    owner, function = _resolve(dotted_name)
    real, calls = getattr(owner, function), 0

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def killing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != nth:
            return real(*args, **kwargs)
        if moment == "before":
            kill()
        if moment == "during":
            args = (args[0], _interrupted_rows(args[1], kill), *args[2:])
        result = real(*args, **kwargs)
        kill()
        return result

    setattr(owner, function, killing)


def _resolve(dotted_name: str) -> tuple[Any, str]:
    """Find the module or class of a function by its dotted name; returns it, and the function's name."""
    parts = dotted_name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:-1]:
            owner = getattr(owner, part)
        return owner, parts[-1]
    raise LookupError(dotted_name)


def _interrupted_rows(data: Any, interrupt: Callable[[], None]) -> Callable[[], Any]:
    """Rows for `delta_tables.replace`: after the first half of a batch ``interrupt`` is called."""
    import pyarrow as pa

    def opened() -> pa.RecordBatchReader:
        source = data() if callable(data) else data.to_reader()

        def batches() -> Any:
            for batch in source:
                yield batch.slice(0, batch.num_rows // 2)
                interrupt()

        return pa.RecordBatchReader.from_batches(source.schema, batches())

    return opened


def limited_step(folder: str, name: str, arguments: dict[str, Any], answer: str, size: int) -> None:
    """Run one step in a process that may write no file beyond ``size`` bytes."""
    import resource

    from perennial.steps import dispatch

    dispatch.load_step(name)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    step(folder, name, arguments, answer)


def loaded(answer: str, *names: str) -> None:
    """Write into the file ``answer`` which of these modules this process has without importing any."""
    Path(answer).write_text(json.dumps([name for name in names if name in sys.modules]))


def write_ids(uri: str, day: str, first: int, count: int) -> None:
    """Replace one partition by ``count`` numbers from ``first``."""
    import pyarrow as pa

    from perennial.storage import delta_tables

    ids = pa.array(range(first, first + count), pa.int64())
    delta_tables.replace(uri, pa.table({"id": ids, "partition_date": [day] * count}), day)


def append_records(model: str, count: int) -> None:
    """Append records to a model's ledger."""
    from perennial.storage import ledger
    from perennial.storage.ledger import Decision, LedgerKind

    for n in range(count):
        ledger.append(
            model, kind=LedgerKind.TRAINING, decision=Decision.ACCEPTED, reason=str(n), actor=str(os.getpid())
        )


def hold(name: str, path: str, seconds: float) -> None:
    """Hold a lock; the file ``path`` appears once it is held."""
    import time

    from perennial.storage import locks

    with locks.hold(name):
        Path(path).write_text("held")
        time.sleep(seconds)


def count_up(path: str, times: int) -> None:
    """Add to the number in a file, under a lock."""
    from perennial.storage import locks

    for _ in range(times):
        with locks.hold("counter"):
            number = int(Path(path).read_text())
            Path(path).write_text(str(number + 1))
