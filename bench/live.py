"""The whole loop in a live Airflow, against one plain process that runs the same steps."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.figures import Figure
from bench.workspace import FIRST, LAST, MODEL, TRAINED_UNTIL, Workspace, free_port
from perennial.core import dates
from perennial.core.errors import PerennialError
from perennial.local_stack import processes, servers
from perennial.local_stack.airflow_client import DONE, Airflow
from perennial.local_stack.config import Stack
from perennial.local_stack.progress import ProgressDisplay

MONITORED = "2013-04-28"


class PlannedRun(NamedTuple):
    """A DAG run of the loop: its stage, partition key and trigger form, and the runs that must end before it starts."""

    stage: str
    key: str | None
    form: dict[str, str]
    after: tuple[str, ...] = ()


#: Each starts when the runs that it needs have ended, in parallel with all others, as a scheduler would do it.
RUNS = {
    "history": PlannedRun("data", None, {"start": FIRST, "end": TRAINED_UNTIL}),
    "nights": PlannedRun("data", None, {"start": dates.add_days(TRAINED_UNTIL, 1), "end": LAST}),
    "train": PlannedRun("train", TRAINED_UNTIL, {"reason": "bench"}, ("history",)),
    "score": PlannedRun("score", None, {"start": FIRST, "end": MONITORED}, ("train", "nights")),
    "monitor": PlannedRun("monitor", MONITORED, {}, ("score",)),
    "later": PlannedRun("score", None, {"start": dates.add_days(MONITORED, 1), "end": LAST}, ("score",)),
}
LIGHT = ("promote", "decide")


def loop(workspace: Workspace) -> list[Figure]:
    """Measure Airflow and a plain process, alternately, three times (once if quick).

    Each starts with an empty lake and registry; the plain process runs one step after the other, as a script does.
    The figure is the median ratio.
    """
    workspace.prepare()  # the sample has landed
    plain, alive, light = [], [], []
    parts: list[str] = []
    for i in range(1 if workspace.quick else 3):
        home = _empty(workspace.folder / f"plain-{i}")
        done = workspace.measure(
            "loop", env={"PERENNIAL_HOME": str(home), "MLFLOW_TRACKING_URI": workspace.start_mlflow(home)}
        )
        processes.stop(home)
        plain.append(done.seconds)
        parts.append("plain " + " ".join(f"{k} {v:.1f}" for k, v in done.result.items()))
        with LiveStack(workspace, i) as live:
            wall, tasks = live.run_loop()
        alive.append(wall)
        light.append(max(s for t, s in tasks.items() if t in LIGHT))
        parts.append("Airflow " + " ".join(f"{k} {v:.1f}" for k, v in tasks.items()))
    workspace.console.print("\n".join(parts), markup=False, soft_wrap=True)
    ratios = [ours / theirs for ours, theirs in zip(alive, plain, strict=True)]
    pairs = "; ".join(f"{ours:.1f} s, plain {theirs:.1f}" for ours, theirs in zip(alive, plain, strict=True))
    return [
        Figure(
            "loop",
            "data, train, promote, score, monitor",
            median(ratios),
            "×",
            0.65,
            detail=f"median of {pairs}",
        ),
        Figure(
            "loop",
            "a light task, start to end",
            min(light),
            "s",
            1,
            detail="the longer of promote and decide",
        ),
    ]


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


class LiveStack:
    """A separate local stack, warmed up."""

    def __init__(self, workspace: Workspace, number: int) -> None:
        self.workspace = workspace
        self.home = _empty(workspace.folder / f"live-{number}")
        self.config = Stack(self.home, free_port(), free_port(), (free_port(), free_port()))

    def __enter__(self) -> LiveStack:
        self.workspace.stop_at_exit(self.home)
        self.before = dict(os.environ)
        for name in [n for n in os.environ if n.startswith(("PERENNIAL_", "MLFLOW_", "AIRFLOW"))]:
            del os.environ[name]
        os.environ["PERENNIAL_HOME"] = str(self.home)
        os.environ["PERENNIAL_LANDING"] = str(self.workspace.landing)
        with ProgressDisplay(self.workspace.console) as progress:
            servers.start_all(self.config, progress)
        self.airflow: Airflow = servers.client(self.config)
        self._await_dags()
        return self

    def __exit__(self, *_: object) -> None:
        self.airflow.close()
        servers.stop_all(self.config)
        os.environ.clear()
        os.environ.update(self.before)

    def _await_dags(self) -> None:
        wanted = {f"{MODEL}.{planned.stage}" for planned in RUNS.values()}
        end = time.monotonic() + 180
        while wanted - set(self.airflow.paused()):
            if time.monotonic() > end:
                raise RuntimeError("Airflow does not know the model's DAGs")
            time.sleep(0.5)
        # The very first task has to wait for the task API and for the scheduler's first loop. This one fails
        # immediately, because nothing is published yet.
        run = self.airflow.trigger(f"{MODEL}.score", conf={"start": FIRST})
        while self.airflow.call("GET", f"/dags/{MODEL}.score/dagRuns/{run}")["state"] not in DONE:
            time.sleep(0.5)

    def run_loop(self) -> tuple[float, dict[str, float]]:
        """Run the loop; returns its duration in seconds, and the total duration of the tasks by task id."""
        began = end = time.time()
        waiting, done = dict(RUNS), dict[str, tuple[str, str]]()
        running: dict[Future[str], tuple[str, str, str]] = {}
        with ThreadPoolExecutor(len(RUNS)) as pool:
            while waiting or running:
                for name in [n for n, planned in waiting.items() if done.keys() >= set(planned.after)]:
                    planned = waiting.pop(name)
                    dag = f"{MODEL}.{planned.stage}"
                    run = self.airflow.trigger(dag, key=planned.key, conf=planned.form)
                    running[pool.submit(self.airflow.wait, dag, run)] = name, dag, run
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    name, dag, run = running.pop(future)
                    if future.result() == "failed":
                        raise PerennialError(
                            f"{dag} failed: {self.airflow.failure_reason(dag, run)}", "see the log"
                        )
                    done[name] = dag, run
        seconds: dict[str, float] = {}
        for task in (task for dag, run in done.values() for task in self.airflow.tasks(dag, run)):
            if task["start_date"] and task["end_date"]:
                start, stop = (datetime.fromisoformat(task[k]) for k in ("start_date", "end_date"))
                seconds[task["task_id"]] = seconds.get(task["task_id"], 0.0) + (stop - start).total_seconds()
                end = max(end, stop.timestamp())
        return end - began, seconds
