"""A lake with models of every state, for tests of status and console; made by steps where that is quick."""

from __future__ import annotations

import hashlib
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from perennial.alerting import incidents
from perennial.alerting.incidents import SignalObservation
from perennial.core.partitions import DAILY
from perennial.core.settings import settings
from perennial.modeling import performance
from perennial.modeling.performance import Estimate, Performance, SlicePerformance
from perennial.monitoring.drift_verdict import ColumnDrift
from perennial.monitoring.histograms import BinCounts, ReferenceColumn
from perennial.monitoring.pictures import feature_histograms
from perennial.spec.model_spec import ModelSpec
from perennial.status import refresh
from perennial.steps import dispatch
from perennial.storage import landing, ledger, manifests, object_store
from perennial.storage.ledger import Decision, LedgerKind
from perennial.storage.manifests import Manifest
from perennial.training.gate import fairness
from perennial.training.gate.fairness import Disparity, FairnessVerdict, GroupRate
from perennial.training.studies.usefulness import UnitUsefulness, Usefulness, verdict
from support import toys

#: The partition that ended last, and the first one that was published: eight partitions, one of them missing.
TODAY = DAILY.last_ended(datetime.now(UTC))
FIRST = DAILY.shift(TODAY, -7)
KEYS = DAILY.keys(FIRST, TODAY)
MISSING, WITH_QUARANTINE = KEYS[4], KEYS[5]
#: Rows that land in `WITH_QUARANTINE` and are refused.
BAD_ROWS = 5
PERSON = "Ada Lovelace"
HOSTILE = "<img src=x onerror=alert(1)>"


def make_spec(root: Path, name: str, **changes: Any) -> ModelSpec:
    """A toy whose schedule begins at `FIRST`."""
    columns = {
        "id": "string", "seen_at": "timestamp", "x": "number", "z": "number", "k": "string", "place": "string",
        "who": "string",
    }  # fmt: skip
    data = {"columns": columns, "personal": ["who"], "quarantine_limit": 0.5}
    return toys.model(root, name, schedule={"start": FIRST}, data=data, tags=["pricing"], **changes)


def land(spec: ModelSpec, day: str, bad: int = 0, k: str | None = None) -> None:
    """Land the rows and labels of one partition, some of them with an impossible value."""
    table = toys.rows(spec.task, day, 30)
    x = [99.0] * bad + table["x"].to_pylist()[bad:]
    table = table.set_column(table.column_names.index("x"), "x", pa.array(x))
    table = table.append_column("who", pa.array([PERSON] * len(table)))
    if k is not None:
        table = table.set_column(table.column_names.index("k"), "k", pa.array([k] * len(table)))
    toys.write(landing.source_uri(spec.data.source, day), table)
    toys.write(landing.source_uri(spec.label.source or "", day), toys.labels(spec.task, table))


def publish(spec: ModelSpec) -> None:
    """Publish all partitions but `MISSING`: one with rows in quarantine by the data step, the others by manifests."""
    toys.write(landing.source_uri(spec.references[0].source), toys.places())
    land(spec, WITH_QUARANTINE, BAD_ROWS, HOSTILE)
    dispatch.run("data", spec, start=WITH_QUARANTINE)
    write_published(spec, *(day for day in KEYS if day not in (MISSING, WITH_QUARANTINE)))
    write_published(spec, *(day for day in KEYS[:-1] if day != MISSING), step="labels")


def write_published(spec: ModelSpec, *days: str, step: str = "data") -> None:
    """Write the manifests of published partitions, or labels; of all partitions by default."""
    for day in days or KEYS:
        manifests.write(Manifest(spec.name, step, day, {}, {}, rows_in=30, rows_out=30), time.monotonic() - 3)


def performance_of(version: str) -> Performance:
    """What a training stores about the held-out rows: a slice that is worse, a rare one, and one of personal data."""

    def metrics(shift: float) -> dict[str, Estimate]:
        loss = 0.31 - int(version) / 100 + shift
        return {
            "log_loss": Estimate(loss, loss - 0.02, loss + 0.02),
            "auc": Estimate(0.8 - shift, 0.78 - shift, 0.82 - shift),
        }

    champion, worse = ({}, None) if version == "1" else (metrics(-0.01), Estimate(-0.08, -0.12, -0.03))
    slices = [
        SlicePerformance("place", HOSTILE, 150, metrics(0.1), champion, worse),
        SlicePerformance("place", "Oslo", 20, {}, {}, None, "too few rows: 20, 100 are needed"),
        SlicePerformance("who", PERSON, 120, metrics(0.0), champion),
    ]
    return Performance(0.95, "rows", 290, metrics(0.0), champion, slices, {"place": 120})


def store_performance(version: str) -> str:
    """Store it as this machine's copy of the file in MLflow; returns its digest."""
    file = settings().home / "cache" / "runs" / f"run{version}" / performance.ARTIFACT
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(performance_of(version).as_dict()))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def store_fairness(version: str) -> str:
    """Store gaps between groups, of a column that is personal data by now, and of one whose groups the spec named."""
    rates = (GroupRate("north", 150, 0.2, 0.15, 0.25), GroupRate(HOSTILE, 140, 0.35, 0.3, 0.4))
    hidden = (GroupRate(PERSON, 150, 0.2, 0.15, 0.25), GroupRate("Bob", 140, 0.35, 0.3, 0.4))
    gap = (0.15, 0.1, 0.2, 0.57)
    disparities = [
        Disparity((column,), "error rate", "", groups, *gap, few_groups=3, few_rows=41)
        for column, groups in (("place", rates), ("who", hidden))
    ]
    verdicts = [
        FairnessVerdict(
            d.columns, "error_rate", "difference", 0.2, 0.15, True, *(g.group for g in d.groups), "…"
        )
        for d in disparities
    ]
    file = settings().home / "cache" / "runs" / f"run{version}" / fairness.ARTIFACT
    file.write_text(json.dumps(fairness.Fairness(0.95, 100, disparities, verdicts, ("place",)).as_dict()))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def promote(
    spec: ModelSpec, version: str, as_of: str, actor: str = "gate", previous: str | None = None
) -> None:
    """Record a training that passed its gate, with its manifest, and its promotion."""
    reasons = [
        "ok: evaluated on 290 of 300 rows (10 without a label)",
        "ok: log_loss 0.3100, constant 0.6931",
    ]
    request = {"actor": "retraining policy", "reason": f"drift of {HOSTILE}"}
    tags = {
        "trained_range": f"{FIRST}..{as_of}", "holdout_range": f"{as_of}..{as_of}", "spec_digest": version * 64,
        "code_version": "0.1.0+abc", "algorithm": "trees", "device": "cuda",
    }  # fmt: skip
    evidence = {
        "metrics": {"log_loss": 0.31 - int(version) / 100, "auc": 0.8}, "run_id": f"run{version}", "tags": tags,
        "request": request, "champion": None if version == "1" else "1", "window": "long",
        "previous": previous,
    }  # fmt: skip
    evidence["digests"] = {"model.ubj": version * 64, performance.ARTIFACT: store_performance(version)}
    if version == "2":
        evidence["digests"][fairness.ARTIFACT] = store_fairness(version)
    for kind, decision, reason in (
        (LedgerKind.TRAINING, Decision.ACCEPTED, "; ".join(reasons)),
        (LedgerKind.PROMOTION, Decision.PROMOTED, "passed its gate"),
    ):
        ledger.append(spec.name, kind=kind, decision=decision, reason=reason, actor=actor, partition=as_of,
                      model_version=version, evidence=evidence)  # fmt: skip
    comparison = {"loss": 0.31, "other": 0.6931, "improvement": 0.55, "low": 0.4, "high": 0.6, "rows": 290}
    result: dict[str, Any] = {
        "run_id": f"run{version}", "rounds": 120, "trials": 4, "report": "somewhere.html",
        "dataset_version": {"published": 7, "labels": 6, "references": {"places": 1}},
        "rows": {"fit": 1000, "valid": 100, "holdout": 290},
        "candidates": {"window": {"long": 0.31, "since the change": 0.33}, "algorithm": {}},
        "gate": {
            "reasons": reasons, "against_baselines": {"constant": comparison}, "not_compared": "",
            "against_champion": None if version == "1" else comparison, "champion": evidence["champion"],
            "coverage": {"evaluated": 290, "rows": 300, "omitted": {"without a label": 10}, "counted_wrong": {}},
        },
    }  # fmt: skip
    if version == "2":
        result["usefulness"] = usefulness_of(as_of)
    manifest = Manifest(spec.name, "train", as_of, {}, result, rows_in=1100, rows_out=1100, device="cuda",
                        model_version=version, run_id="manual__1")  # fmt: skip
    manifests.write(manifest, time.monotonic() - 600)


def usefulness_of(as_of: str) -> Usefulness:
    """What a training found out about features without which it fitted its challenger again."""
    units = [
        UnitUsefulness(
            name=name, kind="feature", columns=[name], loss=0.29, loss_without=0.29 * (1 + rise), rise=rise,
            low=rise - 0.01, high=rise + 0.01, verdict=verdict(rise - 0.01, rise + 0.01, 0.005), as_of=as_of,
        )
        for name, rise in (("x", 0.05), (HOSTILE, -0.02))
    ]  # fmt: skip
    return {
        "as_of": as_of, "metric": "log_loss", "confidence": 0.95, "units": units, "together": None,
        "not_measured": ["z"], "sentence": f"these features do not help: {HOSTILE}",
    }  # fmt: skip


def write_histograms(spec: ModelSpec, day: str, version: str) -> None:
    """Write the compared columns of a window, as the monitor step does."""
    columns = [
        ColumnDrift("x", "feature", "drifted", "PSI 0.4", 0.4, 0.2, 0.0, 0.01, 300, 0.7, 0.02),
        ColumnDrift("k", "feature", "stable", "", 0.01, 0.2, 0.0, 0.0, 300, 0.3),
        ColumnDrift("prediction", "prediction", "stable", "", 0.02, 0.2, 0.0, 0.0, 300, 0.0),
    ]
    reference = {
        "x": ReferenceColumn("numeric", [100, 200, 150, 50, 0], [0.5, 1.25, 12_000.0]),
        "k": ReferenceColumn("categorical", [300, 150, 50, 0], categories=["a0", HOSTILE]),
    }
    window = BinCounts(300, {"x": [20, 60, 120, 97, 3], "k": [180, 90, 30, 0]})
    content = feature_histograms.content(day, version, columns, reference, [window], [])
    object_store.write_text(feature_histograms.uri(spec.name, day), json.dumps(content))


def score(spec: ModelSpec, day: str, version: str) -> None:
    """Write the manifest of a scored partition."""
    manifest = Manifest(spec.name, "score", day, {}, {}, rows_in=30, rows_out=30, model_version=version)
    manifests.write(manifest, time.monotonic() - 2)


def monitor(spec: ModelSpec, day: str, version: str, **result: Any) -> None:
    """Write the manifest of a verdict; ``result`` replaces parts of it."""
    signals = {
        "performance": {
            "state": "ok",
            "reason": "as expected",
            "value": 0.01,
            "limit": 5.0,
            "level": 1.5,
            "since": "",
        },
        "slices": {
            "state": "ok",
            "reason": "place=Oslo: as expected",
            "value": 0.01,
            "limit": 5.0,
            "level": 1.0,
            "since": "",
        },
        "volume": {
            "state": "ok",
            "reason": "30 rows",
            "value": 1.0,
            "limit": 2.0,
            "level": None,
            "since": "",
        },
    }
    content = {
        "as_of": day, "verdict": "ok", "reason": "nothing drifted", "drift_share": 0.02, "drifted": [],
        "model_version": version, "signals": signals, "report": "",
        "performance": {"verdict": "ok", "reason": "as at training", "metric": "log_loss",
                        "metrics": {"log_loss": 0.33}, "metrics_at_training": {"log_loss": 0.31}},
    } | result  # fmt: skip
    manifests.write(
        Manifest(spec.name, "monitor", day, {}, content, model_version=version), time.monotonic() - 1
    )


def open_incident(spec: ModelSpec, signal: str, day: str) -> None:
    """Open a bad incident."""
    incidents.record_signals(spec, day, {signal: SignalObservation("bad", "worse than at training")})


def build(root: Path) -> dict[str, ModelSpec]:
    """Make the models: one that is well, one that drifted, one without a champion, one untouched, one broken."""
    specs = {name: make_spec(root, name) for name in ("well", "fresh", "untouched", "broken")}
    specs["drifted"] = make_spec(root, "drifted", retraining={"mode": "approval"})
    publish(specs["well"])
    write_published(specs["drifted"])
    for name in ("well", "drifted"):
        spec = specs[name]
        promote(spec, "1", KEYS[1])
        for day in KEYS[2:]:
            if day != MISSING:
                score(spec, day, "1" if day < KEYS[6] else "2")
                monitor(spec, day, "1" if day < KEYS[6] else "2")
        promote(spec, "2", KEYS[5], actor=HOSTILE if name == "drifted" else "gate", previous="1")
    monitor(specs["drifted"], KEYS[-1], "2", verdict="drifted", reason=HOSTILE, drift_share=0.4)
    for name in ("well", "drifted"):
        write_histograms(specs[name], KEYS[-1], "2")
    open_incident(specs["drifted"], "features", KEYS[-1])
    write_published(specs["fresh"])
    for name in ("well", "drifted", "fresh"):
        refresh.refresh(specs[name])
    model_file = root / "broken" / "model.yaml"
    model_file.write_text(model_file.read_text().replace("owner:", "ownr:"))
    return specs
