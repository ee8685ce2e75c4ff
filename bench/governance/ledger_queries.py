"""Questions to a ledger in which one model has a million records, a tenth of them trainings."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from bench.figures import Figure
from bench.workspace import MODEL, Workspace

RECORDS, QUICK_RECORDS = 1_000_000, 100_000
#: Records of a file, about as many as `ledger.merge_files` makes; the latest ones are single, as appends leave them.
FILE_RECORDS, SINGLE_RECORDS = 15_000, 50
#: Records from one version to the next: training, approval, promotion, and decisions not to train.
RECORDS_PER_VERSION = 10
START = datetime(2024, 1, 1, tzinfo=UTC)
REPEATS = 5
_QUESTIONS = {"champion": "champion of a day", "origin": "origin of a prediction", "append": "one append"}


def figures(workspace: Workspace) -> list[Figure]:
    """Measure in a separate process, in wall time: these are answers that a person waits for."""
    records = QUICK_RECORDS if workspace.quick else RECORDS
    lake = workspace.folder / f"lake-ledger-{records}"
    env = {"PERENNIAL_LAKE": str(lake), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    if not (lake / "done").exists():
        workspace.measure("ledger_make", env=env, records=records)
        (lake / "done").touch()
    measured = workspace.measure("ledger_queries", env=env, records=records)
    title = f"{records:,} records"
    detail = (
        f"verification of the whole chain: {measured['verify']:.0f} s, CPU {measured['verify_cpu']:.0f} s"
    )
    return [
        *(
            Figure(
                "ledger",
                f"{what}, {title}",
                measured[name],
                "s",
                1.0,
                detail=f"CPU {measured[f'{name}_cpu']:.2f} s",
            )
            for name, what in _QUESTIONS.items()
        ),
        Figure("ledger", "peak memory of all", measured.memory_mb, "MiB", 1024, detail=detail),
    ]


def make_ledger(records: int) -> dict[str, Any]:
    """Write the records, with right hashes; and a scored partition whose version is in the middle of them."""
    import pyarrow as pa
    from deltalake import write_deltalake

    from perennial.storage import delta_tables, ledger, object_store
    from perennial.storage.ledger_table import table_files

    delta_tables.create(ledger.uri(), table_files.schema(), table_files.PROPERTIES, partition_by=["model"])
    batch: list[dict[str, Any]] = []
    for row in _rows(records):
        batch.append(row)
        is_single = row["sequence"] > records - SINGLE_RECORDS
        if is_single or len(batch) == FILE_RECORDS or row["sequence"] == records - SINGLE_RECORDS:
            table = pa.Table.from_pylist(batch, table_files.schema())
            write_deltalake(ledger.uri(), table, mode="append", partition_by=["model"])
            batch = []
    object_store.write_text(
        ledger.head_uri(MODEL), json.dumps({"sequence": row["sequence"], "hash": row["hash"]})
    )
    _write_scores(str(records // RECORDS_PER_VERSION // 2))
    return {"files": len(table_files.of_model(MODEL))}


def _rows(records: int) -> Iterator[dict[str, Any]]:
    from perennial.core.dates import utc_timestamp
    from perennial.storage.ledger_table import chain

    previous = chain.GENESIS
    for number in range(1, records + 1):
        version, in_version = divmod(number - 1, RECORDS_PER_VERSION)
        kind, decision = _KINDS.get(in_version, ("retraining", "declined"))
        row: dict[str, Any] = {
            "model": MODEL,
            "sequence": number,
            "recorded_at": utc_timestamp(START + timedelta(seconds=60 * number)),
            "kind": kind,
            "decision": decision,
            "reason": f"log_loss is better than the champion's by {number % 97 / 100:.2f}; drift is low",
            "evidence": chain.evidence_text(_evidence(kind, version)),
            "actor": "gate",
            "partition": (START + timedelta(days=version)).date().isoformat(),
            "model_version": str(version) if in_version in _KINDS else "",
            "previous": previous,
        }
        row["hash"] = previous = chain.row_hash(row)
        yield row


_KINDS = {0: ("training", "accepted"), 1: ("approval", "approved"), 2: ("promotion", "promoted")}


def _evidence(kind: str, version: int) -> dict[str, Any]:
    run_id = f"{version:032x}"
    if kind == "retraining":
        return {"triggers": ["drift"], "verdict": "ok", "gain": version % 13 / 100, "run_id": run_id}
    names = ("model.ubj", "recipe.json", "spec.json", "reference.json", "baseline.json")
    return {
        "run_id": run_id,
        "previous": str(version - 1),
        "digests": dict.fromkeys(names, f"{version:064x}"),
        "tags": {
            "spec_digest": f"{version:016x}",
            "dataset_version": f"published@{version} labels@{version}",
            "code_version": f"{version:040x}",
        },
        "metrics": dict.fromkeys(("log_loss", "roc_auc", "brier", "average_precision"), version % 101 / 101),
    }


def _write_scores(version: str) -> None:
    """A scored partition with one row."""
    import pyarrow as pa

    from perennial.spec import catalog
    from perennial.storage import delta_tables, manifests
    from perennial.storage.manifests import Manifest

    spec = catalog.load_model_by_name(MODEL)
    day = spec.first_partition
    columns: dict[str, Any] = {name: ["1"] for name in spec.data.key}
    columns |= {spec.lake_column("prediction"): [0.5], spec.lake_column("model_version"): [version]}
    rows = pa.table(columns | {delta_tables.PARTITION: [day]})
    delta_tables.replace(delta_tables.table_uri("predictions", MODEL), rows, day)
    inputs = {"rows": "f", "champion": f"{int(version):064x}", "version": version, "references": {}}
    manifests.write(
        Manifest(MODEL, "score", day, inputs, {"rows": 1}, model_version=version), time.monotonic()
    )


def measure_queries(records: int) -> dict[str, Any]:
    """Wall and CPU seconds of each question, the median of some, each about another time."""
    from statistics import median

    from perennial.governance import champion_history, prediction_origin
    from perennial.spec import catalog
    from perennial.storage import ledger
    from perennial.storage.ledger import Decision, LedgerKind

    spec = catalog.load_model_by_name(MODEL)
    key = dict.fromkeys(spec.data.key, "1")

    def champion(n: int) -> None:
        moment = START + timedelta(seconds=60 * records * (n + 1) // (REPEATS + 1))
        answer = champion_history.champion_at(MODEL, moment.date().isoformat())
        assert answer.change and answer.change["recorded_at"] < answer.until

    def origin(n: int) -> None:
        answer = prediction_origin.find_origin(spec, spec.first_partition, key)
        assert answer.approval and answer.promotion

    def append(n: int) -> None:
        ledger.append(MODEL, kind=LedgerKind.ALERTING, decision=Decision.MUTED, reason="r", actor="bench")

    def verify(n: int) -> None:
        ledger.verify(MODEL)

    seconds = {}
    for question, repeats in ((champion, REPEATS), (origin, REPEATS), (append, REPEATS), (verify, 1)):
        walls, cpus = [], []
        for n in range(repeats):
            began, cpu = time.monotonic(), time.process_time()
            question(n)
            walls.append(time.monotonic() - began)
            cpus.append(time.process_time() - cpu)
        seconds[question.__name__] = median(walls)
        seconds[f"{question.__name__}_cpu"] = median(cpus)
    return seconds
