"""The train step: pin a dataset version, search and fit, judge champion and challenger on the same rows, register."""

from __future__ import annotations

import contextlib
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.core import runtime
from perennial.core.errors import DataError, PerennialError, StorageError
from perennial.core.settings import settings
from perennial.features import reference_tables
from perennial.features.engine import FeatureQuery
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.storage import delta_tables, ledger, manifests
from perennial.storage.manifests import Manifest
from perennial.training.artifacts import build_artifacts
from perennial.training.checkpoint import Checkpoint
from perennial.training.windows import Windows, candidate_windows

if TYPE_CHECKING:
    from perennial.training.search import FitResult


def train(
    spec: ModelSpec,
    *,
    as_of: str,
    reason: str = "",
    force: bool = False,
    run_id: str = "",
    workers: int = 1,
    meeting: str | None = None,
    actor: str = "",
) -> dict[str, Any]:
    """Train a challenger on what is known by the partition date ``as_of`` and judge it. Nothing is promoted here.

    Args:
        reason: why it was asked for. actor: by whom; the ledger keeps both.
        workers: processes that fit it together. meeting: where those in other places find this one
            (`perennial.training.dask_cluster`); processes of this machine when not given.

    Returns:
        run_id, version, dataset versions, device, workers, metrics, gate (passed, reasons, comparisons) and status.

    Raises:
        DataError: too little labelled data. PerennialError: cuda was asked for and there is none.
        Absent: a worker did not come. Interrupted: one was lost.
    """
    started = time.monotonic()
    published, labels = (
        delta_tables.table_uri("published", spec.name),
        delta_tables.table_uri("labels", spec.name),
    )
    own = spec.label.source is None
    version, labels_version = delta_tables.version(published), None if own else delta_tables.version(labels)
    if version is None or (not own and labels_version is None):
        raise DataError(
            "nothing was published yet" if version is None else "no label has arrived yet",
            "run the data DAG first, with start and end",
            model=spec.name,
            partition=as_of,
        )
    since = _since(spec, as_of)
    splits = candidate_windows(
        spec,
        as_of,
        delta_tables.partitions(published if own else labels, version if own else labels_version),
        since,
    )
    first = min(split.fit[0] for split in splits.values())
    last = next(iter(splits.values())).holdout[-1]
    champion = registry.champion(spec)
    inputs: dict[str, Any] = {
        "rows": delta_tables.fingerprint(published, first, last, version),
        "spec": spec.digest,
        "labels": "" if own else delta_tables.fingerprint(labels, first, last, labels_version),
        "references": reference_tables.sync_to_lake(spec),
        "since": since,
    }
    done = None if force else manifests.find_completed(spec.name, "train", as_of, inputs)
    if done and _stands(spec, done, champion):
        return done.result | {"status": "unchanged"}

    from perennial.training import candidates, challenger_evaluation
    from perennial.training.tracking import TrainingRun

    features = FeatureQuery(spec, inputs["references"])
    # Other workers have other shares, and bin them otherwise: what so many began only so many go on with.
    begun = inputs | ({"workers": workers} if workers > 1 else {})
    checkpoints = {kind: Checkpoint.of(spec.name, as_of, begun | {"window": kind}) for kind in splits}
    recorder = TrainingRun(spec, as_of, reason)
    try:
        with _workspace() as name:
            folder = Path(name)
            source = challenger_evaluation.TrainingSource(spec, features, version, labels_version)
            best = candidates.fit_best_candidate(
                source, splits, champion, folder, checkpoints, recorder.trial, workers, meeting
            )
            split, fitted, model = best.split, best.fitted, best.model
            tags = _tags(spec, as_of, split, fitted, reason, {"published": version, "labels": labels_version})
            if fitted.external:  # rows that do not fit into memory are gone through by one at a time
                _ = best.judged
            with ThreadPoolExecutor(1, thread_name_prefix="companions") as pool:
                # With features of its own: the judge uses the others meanwhile.
                apart = replace(source, features=FeatureQuery(spec, features.versions))
                made = pool.submit(build_artifacts, apart, model, split, folder, champion)
                judged = best.judged
                told = {"evaluation.json": judged | {"champion": champion.version if champion else None}}
                registered = recorder.register(
                    model,
                    fitted,
                    best.example,
                    judged["metrics"],
                    tags,
                    _description(as_of, reason, judged),
                    lambda: (made.result()[0] | told, made.result()[1]),
                )
        recorder.finish()
        for checkpoint in checkpoints.values():
            checkpoint.clear()
    except BaseException as error:
        recorder.fail()
        # The retraining that asked for this is no longer in flight: the next verdict may ask again.
        with contextlib.suppress(PerennialError):  # what went wrong first is what is told
            ledger.append(
                spec.name,
                kind="training",
                decision="failed",
                reason=str(error).split("\n")[0][:500] or type(error).__name__,
                actor="training",
                partition=as_of,
                evidence={
                    "as_of": as_of,
                    "asked": {"by": actor, "because": reason},
                    "error": type(error).__name__,
                },
            )
        if isinstance(error, OSError):
            raise StorageError(
                f"the working folder {settings().home / 'tmp'} cannot be used: {error}",
                "check that the disk has room for the training's rows; then run it again",
                model=spec.name,
                partition=as_of,
            ) from error
        raise
    result = {
        "as_of": as_of,
        "run_id": registered.run_id,
        "version": registered.version,
        "digest": registered.digest,
        "dataset_version": {"published": version, "labels": labels_version, "references": features.versions},
        "device": fitted.device,
        "gpu": fitted.gpu,
        "workers": workers,
        "rounds": fitted.rounds,
        "external_memory": fitted.external,
        "trials": len(fitted.trials),
        "resumed_rounds": fitted.resumed,
        "metrics": judged["metrics"],
        "reason": reason,
        "window": best.kind,
        "since": since,
        "status": "trained",
        "gate": {k: judged[k] for k in ("passed", "reasons", "against_champion", "against_baselines")}
        | {"champion": champion.version if champion else None},
        "rows": {"fit": best.fit, "valid": best.rows - best.fit, "holdout": judged["rows"]},
    }
    passed = judged["passed"]
    ledger.append(
        spec.name,
        kind="training",
        decision="trained" if passed else "refused",
        partition=as_of,
        reason="; ".join(judged["reasons"]),
        actor="gate",
        model_version=registered.version,
        evidence={
            "as_of": as_of,
            "asked": {"by": actor, "because": reason},
            "run_id": registered.run_id,
            "metrics": judged["metrics"],
            "window": best.kind,
            "gpu_seconds": round(time.monotonic() - started, 1) if fitted.device == "cuda" else 0.0,
            "champion": result["gate"]["champion"],
        },
    )
    manifests.write(
        Manifest(
            spec.name,
            "train",
            as_of,
            inputs,
            result,
            outputs={"digest": registered.digest},
            rows_in=best.rows,
            rows_out=best.rows,
            device=fitted.device,
            model_version=registered.version,
            run_id=run_id,
        ),
        started,
    )
    return result


def _since(spec: ModelSpec, as_of: str) -> str:
    """The change that the retraining asked for at ``as_of`` answers to; empty where there is none."""
    asked = [r for r in ledger.records(spec.name, "retraining") if r["partition"] == as_of]
    return str(asked[-1]["evidence"].get("since") or "") if asked else ""


def _stands(spec: ModelSpec, done: Manifest, champion: registry.ModelVersion | None) -> bool:
    """Whether a finished training need not be done again.

    One that passed the gate against a champion that is none any more cannot be promoted, so it is.
    """
    gate, now = done.result["gate"], champion.version if champion else None
    if not gate["passed"] or now in (gate["champion"], done.result["version"]):
        return True
    moves = ledger.records(spec.name, "promotion")
    return any(r["model_version"] == done.result["version"] for r in moves)


def _workspace() -> tempfile.TemporaryDirectory[str]:
    place = settings().home / "tmp"
    place.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="train-", dir=place)


def _tags(
    spec: ModelSpec,
    as_of: str,
    split: Windows,
    fitted: FitResult,
    reason: str,
    versions: dict[str, int | None],
) -> dict[str, str]:
    return {
        "as_of": as_of,
        "task": spec.task,
        "spec_digest": spec.digest,
        "code_version": runtime.code_version(),
        "dataset_version": f"published@{versions['published']} labels@{versions['labels']}",
        "device": fitted.device,
        "trained_on": f"{split.fit[0]}..{split.valid[-1]}",
        "judged_on": f"{split.holdout[0]}..{split.holdout[-1]}",
        "reason": reason,
    }


def _description(as_of: str, reason: str, judged: dict[str, Any]) -> str:
    """What MLflow's page of the model says of the version."""
    said = "Passed its gate" if judged["passed"] else "Refused by its gate"
    first = f"{said}. Trained as of {as_of}: {reason or 'asked for by hand'}\n"
    return first + "".join(f"\n- {why}" for why in judged["reasons"])
