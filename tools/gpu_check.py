"""Train on an NVIDIA card and on the CPU, compare both, score, and write what was measured as JSON (``make test-gpu``).

It makes rows, publishes them into a lake in a temporary folder, and fits models by the code of the step ``train``, with
the binned matrix in memory and on disk. Neither MLflow nor Airflow nor a network is needed.

Exit status: 0 if all checks passed, 1 if one failed or the time was up, 2 if there is no card: then nothing was tested.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import yaml

from perennial.core import dates
from perennial.core.errors import PerennialError
from perennial.features.engine import FeatureQuery
from perennial.ingestion import table_definitions
from perennial.modeling.trained_model import TrainedModel, load_model_file
from perennial.spec.catalog import load_model
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables
from perennial.training import _boosting
from perennial.training.candidates import Candidate, TrainingJob, fit_best_candidate
from perennial.training.challenger_evaluation import TrainingSource
from perennial.training.checkpoint import Checkpoint
from perennial.training.windows import candidate_windows

NO_CARD = 2
FIRST, DAYS, HOLDOUT_DAYS = "2024-01-01", 20, 4
NUMBERS, CATEGORIES = 22, 2
#: Largest difference of a metric between the devices. They add in another order, so that a split may differ.
METRIC_TOLERANCE = 0.01
#: Largest difference of a prediction of one model between the devices.
PREDICTION_TOLERANCE = 1e-4


def say(text: str) -> None:
    """Print one line, and flush it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@dataclass
class Report:
    """What was checked and measured."""

    checks: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)

    def check(self, name: str, passed: bool, detail: str) -> None:
        self.checks.append({"check": name, "passed": bool(passed), "detail": detail})
        say(f"{'ok    ' if passed else 'FAILED'}  {name}: {detail}")


def draw(day: str, rows: int) -> pa.Table:
    """The rows of one day; the label depends on some columns and on their products."""
    random = np.random.default_rng(int(day.replace("-", "")))
    numbers = random.normal(size=(rows, NUMBERS)).astype(np.float32)
    codes = random.integers(0, 40, (rows, CATEGORIES))
    score = 2 * (
        np.sign(numbers[:, 0] * numbers[:, 1]) + numbers[:, 2] + 0.5 * numbers[:, 3] + 1 - codes[:, 0] % 3
    )
    y = random.random(rows) < 1 / (1 + np.exp(-score))
    numbers[random.random(numbers.shape) < 0.02] = np.nan
    columns: dict[str, Any] = {
        "id": [f"{day}-{i}" for i in range(rows)],
        "at": pa.array(np.full(rows, np.datetime64(day, "us"))),
        "y": pa.array(y.astype(np.int64)),
    }
    columns |= {f"n{i}": pa.array(numbers[:, i].astype(np.float64), from_pandas=True) for i in range(NUMBERS)}
    columns |= {f"c{i}": np.char.add("k", codes[:, i].astype(str)).tolist() for i in range(CATEGORIES)}
    return pa.table(columns)


def make_model(folder: Path, device: str, rounds: int) -> ModelSpec:
    """Write a model folder, and load it."""
    numbers, categories = [f"n{i}" for i in range(NUMBERS)], [f"c{i}" for i in range(CATEGORIES)]
    types = {"id": "string", "at": "timestamp", "y": "integer"}
    types |= dict.fromkeys(numbers, "number") | dict.fromkeys(categories, "string")
    content = {
        "name": "gpu_check", "task": "binary", "owner": "tests", "description": "Rows for a check of the GPU.",
        "data": {"source": "{landing}/gpu/{date}.parquet", "key": ["id"], "event_time": "at", "columns": types},
        "label": {"expression": "y"},
        "features": {"categorical": categories},
        "training": {"device": device, "holdout": f"{HOLDOUT_DAYS} days", "rounds": rounds, "early_stopping_rounds": 20,
                     "params": {"max_depth": 6, "learning_rate": 0.1}},
        "gate": {"beat_baseline": False, "bootstrap_samples": 100, "bounds": {"auc": {"min": 0.7}}},
        "schedule": {"start": FIRST},
    }  # fmt: skip
    path = folder / "gpu_check"
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.yaml").write_text(yaml.safe_dump(content))
    (path / "features.sql").write_text(f"SELECT id, {', '.join(numbers + categories)} FROM rows\n")
    (path / "expectations.json").write_text('{"name": "gpu_check", "expectations": []}')
    (path / "README.md").write_text("Rows for a check of the GPU.\n")
    return load_model(path)


def publish(spec: ModelSpec, rows: int) -> list[str]:
    """Publish the rows of all days; returns the days."""
    days = dates.dates(FIRST, dates.add_days(FIRST, DAYS - 1))
    tables = [draw(day, rows // DAYS) for day in days]
    partitions = pa.array([day for day, table in zip(days, tables, strict=True) for _ in range(len(table))])
    table = pa.concat_tables(tables).append_column(delta_tables.PARTITION, partitions)
    labels = table.select(["id", "y", delta_tables.PARTITION]).rename_columns(
        ["id", "label", delta_tables.PARTITION]
    )
    for kind, content in (("published", table), ("labels", labels)):
        table_definitions.writer_of(spec, kind).replace(content, days[0], days[-1])
    return days


def fit(spec: ModelSpec, days: list[str], folder: Path, *, on_disk: bool) -> tuple[Candidate, float]:
    """Fit a model as a training does; returns it and the seconds from published rows to the evaluated model."""
    from perennial.training import _dataset

    started = time.monotonic()
    source = TrainingSource(spec, FeatureQuery(spec), None, None)
    windows = candidate_windows(spec, days[-1], days, "")
    job = TrainingJob(source, None, folder, {name: Checkpoint(None) for name in windows}, lambda _: None)
    # As if the step had no memory for the binned matrix.
    with mock.patch.object(_dataset, "BYTES_PER_CELL", 10**9 if on_disk else 0):
        candidate = fit_best_candidate(job, windows)
    _ = candidate.evaluation
    return candidate, time.monotonic() - started


def describe(candidate: Candidate, device: str, storage: str, seconds: float) -> dict[str, Any]:
    fitted = candidate.fitted
    return {
        "device": fitted.device,
        "requested_device": device,
        "storage": storage,
        "on_disk": fitted.external_memory,
        "seconds": round(seconds, 3),
        "boosting_seconds": sum(trial.seconds for trial in fitted.trials),
        "rounds": fitted.rounds,
        "rows": candidate.rows,
        "metrics": candidate.evaluation.metrics,
        "gpu": fitted.gpu,
    }


def check_run(report: Report, run: dict[str, Any], candidate: Candidate) -> None:
    """Check the device that really fitted, where the matrix was, and that something was learned."""
    name = f"{run['requested_device']}, {run['storage']}"
    report.check(f"{name}: device", run["device"] == run["requested_device"], f"XGBoost used {run['device']}")
    report.check(
        f"{name}: matrix", run["on_disk"] == (run["storage"] == "disk"), f"on disk: {run['on_disk']}"
    )
    passed, auc = candidate.evaluation.passed, run["metrics"]["auc"]
    report.check(f"{name}: model", passed, f"AUC {auc:.4f} on {candidate.evaluation.rows:,} held-out rows")
    if run["requested_device"] == "cuda":
        gpu = run["gpu"]
        used = bool(gpu) and gpu["peak_memory_mb"] > 0 and len(gpu["names"]) > 0
        report.check(f"{name}: card", used, f"nvidia-smi: {gpu or 'nothing'}")


def check_scoring(report: Report, model: TrainedModel, rows: int, folder: Path) -> dict[str, Any]:
    """Score with the model as it was fitted, and with its file on the CPU, as the step score does."""
    import xgboost

    table = pa.concat_tables(
        [draw(day, rows // DAYS) for day in dates.dates(FIRST, dates.add_days(FIRST, 3))]
    )
    matrix = model.encoding.encode(table)
    path = folder / "model.ubj"
    loaded = load_model_file(path, model.save(path), threads=os.cpu_count() or 1)
    started = time.monotonic()
    predicted = loaded.predict_matrix(matrix)
    seconds = time.monotonic() - started
    difference = float(np.abs(predicted - model.predict_matrix(matrix)).max())
    margins = loaded.booster.predict(
        xgboost.DMatrix(matrix[:1000], feature_names=list(model.encoding.columns))
    )
    same = float(np.abs(margins - predicted[:1000]).max())
    ok = max(difference, same) <= PREDICTION_TOLERANCE and bool(np.isfinite(predicted).all())
    report.check(
        "scoring", ok, f"the file on the CPU differs by {difference:.2g} at most from the fitted model"
    )
    return {
        "rows": len(matrix),
        "rows_per_second": round(len(matrix) / max(seconds, 1e-9)),
        "difference": difference,
    }


def compare(report: Report, device: str) -> dict[str, dict[str, float]]:
    """Compare metrics between devices and storages; returns how many times as fast the device was as the CPU."""
    by_key = {(run["role"], run["storage"]): run for run in report.runs}
    faster: dict[str, dict[str, float]] = {}
    for storage in ("memory", "disk"):
        card, cpu = by_key["card", storage], by_key["cpu", storage]
        worst = max(abs(card["metrics"][m] - cpu["metrics"][m]) for m in cpu["metrics"])
        report.check(
            f"metrics, {storage}",
            worst <= METRIC_TOLERANCE,
            f"{device} and CPU differ by {worst:.2g} at most",
        )
        faster[storage] = {
            what: round(cpu[what] / max(card[what], 1e-9), 3) for what in ("seconds", "boosting_seconds")
        }
    for role in ("card", "cpu"):
        memory, disk = by_key[role, "memory"]["metrics"], by_key[role, "disk"]["metrics"]
        worst = max(abs(memory[m] - disk[m]) for m in memory)
        report.check(
            f"metrics, {role}", worst <= METRIC_TOLERANCE, f"memory and disk differ by {worst:.2g} at most"
        )
    return faster


def run(device: str, rows: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Run all checks; returns the content of the JSON file."""
    import xgboost

    report = Report()
    os.environ |= {"PERENNIAL_HOME": str(folder / "home"), "PERENNIAL_THREADS": str(os.cpu_count() or 1)}
    for name in ("PERENNIAL_LAKE", "PERENNIAL_LANDING", "PERENNIAL_MEMORY_MB"):
        os.environ.pop(name, None)
    days = publish(make_model(folder, "cpu", rounds), rows)
    scored: dict[str, Any] = {}
    for role, used in (("cpu", "cpu"), ("card", device)):
        spec = make_model(folder, used, rounds)
        for storage in ("memory", "disk"):
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                candidate, seconds = fit(spec, days, Path(scratch), on_disk=storage == "disk")
            described = describe(candidate, used, storage, seconds)
            report.runs.append({"role": role} | described)
            check_run(report, described, candidate)
            if (role, storage) == ("card", "memory"):
                scored = check_scoring(report, candidate.model, rows, folder)
    faster = compare(report, device)
    for storage, of in faster.items():
        say(
            f"        {device} was {of['boosting_seconds']:.2f} times as fast as the CPU, matrix in {storage}"
        )
    return {
        "device": device,
        "cuda_tested": device == "cuda",
        "passed": all(check["passed"] for check in report.checks),
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "xgboost": xgboost.__version__},
        "rows": rows,
        "features": NUMBERS + CATEGORIES,
        "speed_up": faster,
        "score": scored,
        "runs": report.runs,
        "checks": report.checks,
    }


def usable_card() -> str:
    """Why no card can be used; empty if one can."""
    import xgboost

    try:
        _boosting.resolve_device("cuda")
    except (PerennialError, xgboost.core.XGBoostError) as error:
        return str(error).split("\n")[0]
    return ""


def _time_is_up(*_: object) -> None:
    raise TimeoutError


def main(arguments: list[str] | None = None) -> int:
    """Run the checks; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make test-gpu", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda",
                        help="cpu rehearses the script without a card: it tests nothing of CUDA")  # fmt: skip
    parser.add_argument("--rows", type=int, default=600_000, help="rows to make (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=200, help="boosting rounds (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=240, help="time limit (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(".perennial/gpu.json"), help="default %(default)s")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and (reason := usable_card()):
        bar = "!" * 80
        say(f"{bar}\nNO NVIDIA CARD CAN BE USED HERE: NOTHING OF CUDA WAS TESTED.\n{reason}\n{bar}")
        return NO_CARD
    before = signal.signal(signal.SIGALRM, _time_is_up)
    signal.alarm(options.seconds)
    try:
        with tempfile.TemporaryDirectory(prefix="perennial-gpu-") as folder:
            content = run(options.device, options.rows, options.rounds, Path(folder))
    except TimeoutError:
        say(f"FAILED  it took longer than {options.seconds} seconds: fewer --rows?")
        return 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1))
    say(f"written: {options.out}")
    if options.device == "cpu":
        say("This was a rehearsal on the CPU: nothing of CUDA was tested.")
    return 0 if content["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
