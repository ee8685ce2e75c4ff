"""The parts that need no Airflow server; the measured functions are in `bench.tasks`."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from bench import tasks, wide_models
from bench.figures import Figure
from bench.workspace import FIRST, LAST, MODEL, Measured, Workspace
from perennial.core.settings import ROOT

MODELS = 100


def parse(workspace: Workspace) -> list[Figure]:
    """Parse the DAG files for a hundred models as the DAG processor does: each in a separate process."""
    folder = workspace.folder / "models"
    shutil.rmtree(folder, ignore_errors=True)
    for i in range(MODELS):
        copy = shutil.copytree(ROOT / "include" / "models" / MODEL, folder / f"copy_{i:03d}")
        text = (copy / "model.yaml").read_text()
        (copy / "model.yaml").write_text(text.replace(f"name: {MODEL}", f"name: {copy.name}", 1))
        (copy / "expectations.json").write_text(
            (copy / "expectations.json").read_text().replace(MODEL, copy.name)
        )
    env = {"PERENNIAL_MODELS": str(folder), "AIRFLOW_HOME": str(workspace.folder / "parse")}
    seconds = wall = 0.0
    dags = 0
    for file in sorted((ROOT / "dags").glob("*.py")):
        measured = workspace.measure("parse", env=env, file=str(file))
        seconds += measured["cpu"]
        wall += measured["wall"]
        dags += measured["dags"]
    models = dags / 5
    detail = f"{dags} DAGs of {models:.0f} models, all files of dags/; wall {wall / models * 1000:.1f} ms"
    return [Figure("parse", "CPU a model", seconds / models * 1000, "ms", 20, detail=detail)]


def score(workspace: Workspace) -> list[Figure]:
    """Measure the score step over a year of the large lake, against XGBoost's prediction of rows in memory.

    The figure is the median of three ratios (one if quick). Each compares the step with the mean of the predictions
    just before and just after it, because the load of the machine varies.
    """
    env = workspace.large_lake()

    def predict() -> Measured:
        return workspace.measure("predict", env=env, first=FIRST, last="2013-02-28", rows=1_300_000)

    def seconds(key: str, *runs: Measured) -> float:
        return float(sum(run[key] for run in runs) / sum(run["rows"] for run in runs))

    runs, bare = [], [predict()]
    for _ in range(1 if workspace.quick else 3):
        runs.append(workspace.measure("score", env=env, first=FIRST, last=LAST))
        bare.append(predict())
    pairs = list(zip(runs, pairwise(bare), strict=True))
    wall = [(1 / seconds("wall", run), 1 / seconds("wall", *alone)) for run, alone in pairs]
    work = median(seconds("cpu", *alone) / seconds("cpu", run) for run, alone in pairs)
    detail = "; ".join(f"{rate:,.0f} rows/s, prediction alone {other:,.0f}" for rate, other in wall)
    rows, trees = runs[0]["rows"], bare[0]["trees"]
    return [
        Figure("score", f"lake to lake, {rows:,} rows", median(rate / other for rate, other in wall), "", 0.75, True,
               detail=f"median of {detail}; by CPU seconds {work:.2f}; {trees} trees"),
        Figure("score", "peak memory", max(run["memory_mb"] for run in runs), "MiB", 512, detail="the score step"),
    ]  # fmt: skip


def validate(workspace: Workspace) -> list[Figure]:
    """Measure the data step on one partition of all rows, against one aggregate over the same file."""
    path = workspace.large_file()
    env = {"PERENNIAL_LAKE": str(workspace.folder / "lake-validate")}
    shutil.rmtree(env["PERENNIAL_LAKE"], ignore_errors=True)
    measured = workspace.measure("validate", env=env, folder=str(path.parent), day=path.stem)
    plain = workspace.measure("aggregate_checks", path=str(path))
    shutil.rmtree(env["PERENNIAL_LAKE"], ignore_errors=True)
    detail = (
        f"{measured['validation']:.1f} s against {plain['wall']:.1f} s; by CPU seconds "
        f"{measured['validation_cpu'] / plain['cpu']:.2f}; the whole step, publishing included: "
        f"{measured['wall']:.1f} s"
    )
    return [
        Figure("validate", f"{measured['rows']:,} rows", measured["validation"] / plain["wall"], "×", 3, detail=detail),
        Figure("validate", "peak memory", measured["memory_mb"], "MiB", 1024,
               detail=f"the whole data step; the aggregate: {plain.memory_mb:.0f} MiB"),
    ]  # fmt: skip


def drift(workspace: Workspace) -> list[Figure]:
    """Measure the monitor step over all rows, against one query over the same files that counts the same."""
    env = workspace.large_lake()
    scored = Path(env["PERENNIAL_LAKE"], "predictions", tasks.LARGE).exists()
    if not scored:
        workspace.measure("score", env=env, first=FIRST, last=LAST)
    measured = workspace.measure("drift", env=env, as_of=LAST)
    plain = workspace.measure("aggregate_drift", env=env, first=FIRST, last=LAST)
    detail = (
        f"{measured['counting']:.1f} s against {plain['wall']:.1f} s; by CPU seconds "
        f"{measured['counting_cpu'] / plain['cpu']:.2f}; the whole step: {measured['wall']:.1f} s"
    )
    return [
        Figure("drift", f"{plain['rows']:,} rows", measured["counting"] / plain["wall"], "×", 3, detail=detail),
        Figure("drift", "peak memory", measured["memory_mb"], "MiB", 1024,
               detail=f"the whole monitor step; the query: {plain.memory_mb:.0f} MiB"),
    ]  # fmt: skip


def verdict(workspace: Workspace) -> list[Figure]:
    """Measure the monitor step on ten million rows of 100 columns, and on a quarter of them (a tenth with --quick)."""
    rows = 1_000_000 if workspace.quick else 10_000_000
    workspace.mlflow()
    measured = []
    for share in (4, 1):
        env = {"PERENNIAL_LAKE": str(workspace.folder / f"lake-wide-{rows // share}")}
        if not (done := Path(env["PERENNIAL_LAKE"], "done")).exists():
            workspace.measure("wide_make", env=env, rows=rows // share)
            done.touch()
        measured.append(workspace.measure("wide_verdict", env=env, rows=rows // share))
    small, large = measured
    states = sorted(set(large["signals"].values()))
    detail = f"verdict {large['verdict']}, signals {', '.join(states)}; {large['wall']:.0f} s"
    growth = large["cpu"] / small["cpu"] / 4
    return [
        Figure("verdict", f"peak memory, {rows:,} rows of 100 columns", large["memory_mb"], "MiB", 2048,
               detail=detail),
        Figure("verdict", "CPU a row, against a quarter of the rows", growth, "×", 1.1,
               detail=f"{large['cpu']:.0f} s against {small['cpu']:.0f} s"),
    ]  # fmt: skip


def columns(workspace: Workspace) -> list[Figure]:
    """Measure the data step on a CSV file of 2,000 columns, and on one of 500 (a fifth of the rows with --quick)."""
    rows = 20_000 if workspace.quick else 100_000
    measured = []
    for count in (500, 2000):
        if not (workspace.landing / f"columns-{count}").exists():
            workspace.measure("columns_land", columns=count, rows=rows)
        env = {"PERENNIAL_LAKE": str(workspace.folder / f"lake-columns-{count}")}
        measured.append(workspace.measure("columns_data", env=env, columns=count))
        shutil.rmtree(env["PERENNIAL_LAKE"], ignore_errors=True)
    few, many = measured
    detail = f"{many['cpu']:.0f} s against {few['cpu']:.0f} s; {few['memory_mb']:.0f} MiB with 500 columns"
    return [
        Figure("columns", f"peak memory, CSV of {rows:,} rows of 2,000 columns", many["memory_mb"], "MiB", 1024,
               detail="the whole data step"),
        Figure("columns", "CPU a column, against a quarter of the columns", many["cpu"] / few["cpu"] / 4, "×", 1.3,
               detail=detail),
    ]  # fmt: skip


def wide(workspace: Workspace) -> list[Figure]:
    """Measure all steps of the first models of a file of 252 columns, and of one of 2,000."""
    workspace.mlflow()
    return [
        *_first_model(workspace, 252, 5000, "csv", 20),
        *_first_model(workspace, 2000, 2000 if workspace.quick else 100_000, "parquet"),
    ]


def _first_model(
    workspace: Workspace, columns: int, rows: int, ending: str, seconds: float | None = None
) -> list[Figure]:
    """Measure ``perennial new`` and each step of a model of a wide file."""
    what: dict[str, Any] = {"columns": columns, "rows": rows, "ending": ending}
    models = workspace.folder / f"models-{columns}-{rows}-{ending}"
    env = {
        "PERENNIAL_LAKE": str(workspace.folder / f"lake-{columns}-{rows}-{ending}"),
        "PERENNIAL_MODELS": str(models),
    }
    shutil.rmtree(models, ignore_errors=True)
    models.mkdir(parents=True)
    workspace.measure("wide_sample", **what)
    measured = {"new": workspace.measure("wide_new", env=env, **what)}
    partitions = {name: measured["new"][name] for name in ("first", "last")}
    for step in ("data", *wide_models.STEPS):
        measured[step] = workspace.measure("wide_step", env=env, step=step, **what, **partitions)
    shutil.rmtree(env["PERENNIAL_LAKE"], ignore_errors=True)
    title = f"{columns:,} columns, {rows:,} rows, {ending}"
    spent = ", ".join(f"{step} {m['cpu']:.0f} s {m['memory_mb']:.0f} MiB" for step, m in measured.items())
    return [
        Figure("wide", f"CPU of perennial new: {title}", measured["new"]["cpu"], "s", seconds),
        Figure("wide", f"peak memory of any step: {title}", max(m["memory_mb"] for m in measured.values()), "MiB",
               1024, detail=spent),
    ]  # fmt: skip


def train(workspace: Workspace) -> list[Figure]:
    """Measure the train step with its default memory, and with more than it needs: the model must be the same."""
    env = workspace.large_lake()
    small = workspace.measure("train", env=env, as_of=LAST)
    roomy = workspace.measure("train", env=env | {"PERENNIAL_MEMORY_MB": "65536"}, as_of=LAST)
    same = small["digest"] == roomy["digest"]
    detail = (
        f"{small['external']}, {small['wall']:.0f} s; with more memory allowed: {roomy['external']}, "
        f"{roomy['wall']:.0f} s, {roomy['memory_mb']:.0f} MiB"
    )
    rows = f"{small['rows']:,} of {workspace.rows:,} rows"
    return [
        Figure("train", f"peak memory, {rows}", small["memory_mb"], "MiB", 1536, detail=detail),
        Figure("train", "same digest as in memory", float(same), "", 1, True, small["digest"][:16]),
    ]
