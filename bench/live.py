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
from bench.world import FIRST, LAST, MODEL, TRAINED_UNTIL, World, free_port
from perennial.core import dates
from perennial.core.errors import PerennialError
from perennial.local_stack import processes, servers
from perennial.local_stack.airflow_client import DONE, Airflow
from perennial.local_stack.config import Stack
from perennial.local_stack.progress import Board

MONITORED = "2013-04-28"


class Asked(NamedTuple):
    """A run that the loop needs: its stage, partition key and form, and the runs whose outcome it needs."""

    stage: str
    key: str | None
    form: dict[str, str]
    after: tuple[str, ...] = ()


#: Each begins once what it needs is done, beside whatever else runs then: that is what a scheduler is for.
RUNS = {
    "history": Asked("data", None, {"start": FIRST, "end": TRAINED_UNTIL}),
    "nights": Asked("data", None, {"start": dates.add_days(TRAINED_UNTIL, 1), "end": LAST}),
    "train": Asked("train", TRAINED_UNTIL, {"reason": "bench"}, ("history",)),
    "score": Asked("score", None, {"start": FIRST, "end": MONITORED}, ("train", "nights")),
    "monitor": Asked("monitor", MONITORED, {}, ("score",)),
    "later": Asked("score", None, {"start": dates.add_days(MONITORED, 1), "end": LAST}, ("score",)),
}
LIGHT = ("promote", "decide")


def loop(world: World) -> list[Figure]:
    """Both sides three times (once if quick), in turn, with an empty lake and registry; the median ratio counts.

    The plain process runs one step after the other, as a script does.
    """
    world.prepared()  # the sample has landed
    plain, alive, light = [], [], []
    parts: list[str] = []
    for i in range(1 if world.quick else 3):
        home = _empty(world.folder / f"plain-{i}")
        done = world.measure(
            "loop", env={"PERENNIAL_HOME": str(home), "MLFLOW_TRACKING_URI": world.start_mlflow(home)}
        )
        processes.stop(home, servers.NAMES)
        plain.append(done.seconds)
        parts.append("plain " + " ".join(f"{k} {v:.1f}" for k, v in done.result.items()))
        with Live(world, i) as live:
            wall, tasks = live.play()
        alive.append(wall)
        light.append(max(s for t, s in tasks.items() if t in LIGHT))
        parts.append("Airflow " + " ".join(f"{k} {v:.1f}" for k, v in tasks.items()))
    world.console.print("\n".join(parts), markup=False, soft_wrap=True)
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


class Live:
    """A local stack of its own, warmed up."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.home = _empty(world.folder / f"live-{number}")
        self.config = Stack(self.home, free_port(), free_port(), (free_port(), free_port()))

    def __enter__(self) -> Live:
        self.world.ends(self.home)
        self.before = dict(os.environ)
        for name in [n for n in os.environ if n.startswith(("PERENNIAL_", "MLFLOW_", "AIRFLOW"))]:
            del os.environ[name]
        os.environ["PERENNIAL_HOME"] = str(self.home)
        os.environ["PERENNIAL_LANDING"] = str(self.world.landing)
        with Board(self.world.console) as board:
            servers.start_all(self.config, board)
        self.airflow: Airflow = servers.client(self.config)
        self._await_dags()
        return self

    def __exit__(self, *_: object) -> None:
        self.airflow.close()
        servers.stop_all(self.config)
        os.environ.clear()
        os.environ.update(self.before)

    def _await_dags(self) -> None:
        wanted = {f"{MODEL}.{asked.stage}" for asked in RUNS.values()}
        end = time.monotonic() + 180
        while wanted - set(self.airflow.paused()):
            if time.monotonic() > end:
                raise RuntimeError("Airflow does not know the model's DAGs")
            time.sleep(0.5)
        # The first task of all waits for the API of tasks and for the scheduler's own first round. This one fails at
        # once: nothing is published yet.
        run = self.airflow.trigger(f"{MODEL}.score", conf={"start": FIRST})
        while self.airflow.call("GET", f"/dags/{MODEL}.score/dagRuns/{run}")["state"] not in DONE:
            time.sleep(0.5)

    def play(self) -> tuple[float, dict[str, float]]:
        """Run the loop; seconds from the first trigger to the end of the last task, and of the tasks of each name."""
        began = end = time.time()
        waiting, done = dict(RUNS), dict[str, tuple[str, str]]()
        running: dict[Future[str], tuple[str, str, str]] = {}
        with ThreadPoolExecutor(len(RUNS)) as pool:
            while waiting or running:
                for name in [n for n, asked in waiting.items() if done.keys() >= set(asked.after)]:
                    asked = waiting.pop(name)
                    dag = f"{MODEL}.{asked.stage}"
                    run = self.airflow.trigger(dag, key=asked.key, conf=asked.form)
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
