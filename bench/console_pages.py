"""The console's pages: of 500 models, and of a model with 1,000 partitions, beside a page without any."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.figures import Figure
from bench.workspace import MODEL, Workspace

if TYPE_CHECKING:
    from perennial.spec.model_spec import ModelSpec

MODELS, PARTITIONS, REPEATS = 500, 1_000, 5
#: Records of the ledger: fewer than partitions, because each is a commit.
DECISIONS = 100


def figures(workspace: Workspace) -> list[Figure]:
    """Measure the pages in a separate process, in CPU time, each as often, one after the other."""
    lake = workspace.folder / "lake-console"
    env = {"PERENNIAL_LAKE": str(lake), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    if not (lake / "done").exists():
        workspace.measure("console_lake", env=env)
        (lake / "done").touch()
    seconds = workspace.measure("console_pages", env=env, empty=str(workspace.folder / "lake-empty")).result
    empty = seconds["empty"]
    detail = f"{empty * 1000:.0f} ms without a model"
    other = max((name for name in seconds if name.startswith("/")), key=lambda name: seconds[name])
    slowest = f"of {len(seconds) - 3}: {other.removeprefix(f'/models/{MODEL}')}"
    return [
        Figure("console", f"page of {MODELS} models", seconds["models"], "s", 1.0, detail=detail),
        Figure("console", "its time, beside a page of none", seconds["models"] / empty, "×", detail=detail),
        Figure("console", f"page of a model, {PARTITIONS:,} partitions", seconds["model"], "s", 1.0),
        Figure("console", "its time, beside a page of none", seconds["model"] / empty, "×", detail=detail),
        Figure("console", "slowest of the other pages", seconds[other], "s", 1.0, detail=slowest),
        Figure("console", "its time, beside a page of none", seconds[other] / empty, "×", detail=detail),
    ]


def make_lake() -> dict[str, Any]:
    """Write the manifests of a model's partitions, and a status record like its own for each of the other models."""
    from dataclasses import replace

    from perennial.spec import catalog
    from perennial.status import record, refresh
    from perennial.storage import manifests
    from perennial.storage.manifests import Manifest

    spec = catalog.load_model_by_name(MODEL)
    last = spec.cadence.shift(spec.first_partition, PARTITIONS - 1)
    began = time.monotonic() - 3
    signals = {
        name: {"state": "ok", "reason": "as usual", "value": 0.1, "limit": 1.0, "level": None, "since": ""}
        for name in ("volume", "freshness", "nulls", "labels", "performance", "calibration")
    }
    performance = {
        "metric": "log_loss",
        "metrics": {"log_loss": 0.3},
        "metrics_at_training": {"log_loss": 0.3},
    }
    verdict = {"verdict": "ok", "drift_share": 0.01, "signals": signals, "performance": performance}
    for step, result in (("data", {}), ("labels", {}), ("score", {}), ("monitor", verdict)):
        keys = spec.cadence.range(spec.first_partition, last)
        manifests.write_all(
            (
                Manifest(MODEL, step, key, {}, dict(result), rows_in=9, rows_out=9, model_version="1")
                for key in keys
            ),
            began,
        )
    _write_versions_and_reports(spec, list(spec.cadence.range(spec.first_partition, last)))
    status = refresh.refresh(spec)
    for n in range(MODELS):
        record.write(replace(status, model=f"model_{n:03}"))
    return {}


def _write_versions_and_reports(spec: ModelSpec, keys: Sequence[str]) -> None:
    """Record trainings in the ledger, a tenth of them promoted, and write a report of each partition."""
    from perennial.core.settings import settings
    from perennial.storage import ledger, object_store
    from perennial.storage.ledger import Decision, LedgerKind

    for n in range(DECISIONS):
        is_promotion = n % 10 == 9
        kind = LedgerKind.PROMOTION if is_promotion else LedgerKind.TRAINING
        decision = Decision.PROMOTED if is_promotion else Decision.ACCEPTED
        ledger.append(
            spec.name, kind=kind, decision=decision, reason="ok: a benchmark", actor="gate", partition=keys[n],
            model_version=str(n - is_promotion + 1), evidence={"metrics": {"log_loss": 0.3}, "run_id": f"run{n}"},
        )  # fmt: skip
    for key in keys:
        object_store.write_text(
            f"{settings().lake}/reports/{spec.name}/monitor/{key}.html", "<h1>Report</h1>"
        )


def measure_pages(empty: str) -> dict[str, float]:
    """CPU seconds of each page, the median of some requests after the first one."""
    from fastapi.testclient import TestClient

    from perennial.console.app import create_app
    from perennial.console.host import LocalHost

    browser = TestClient(create_app(LocalHost()), base_url="http://127.0.0.1")
    lake = os.environ["PERENNIAL_LAKE"]
    Path(empty).mkdir(exist_ok=True)
    pages = {"empty": ("/", empty), "models": ("/", lake), "model": (f"/models/{MODEL}", lake)}
    parts = ("versions/1", "compare", "features", "ledger", "cost")
    others = ["/cost", f"/reports/{MODEL}", *(f"/models/{MODEL}/{part}" for part in parts)]
    pages |= {path: (path, lake) for path in others}
    seconds: dict[str, list[float]] = {name: [] for name in pages}
    for _ in range(REPEATS + 1):
        for name, (path, of_lake) in pages.items():
            os.environ["PERENNIAL_LAKE"] = of_lake
            began = time.process_time()
            answer = browser.get(path)
            seconds[name].append(time.process_time() - began)
            answer.raise_for_status()
    return {name: median(values[1:]) for name, values in seconds.items()}
