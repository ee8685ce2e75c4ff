"""The train step: pin a dataset version, search and fit, judge champion and challenger on the same rows, register."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial import lake, ledger, manifest, references, registry
from perennial.allowed import MIN_DAYS
from perennial.boost import Checkpoint
from perennial.dataset import Dataset, Lists, Windows, build, labelled, targets, windows
from perennial.errors import DataError, PerennialError, StorageError
from perennial.features import Features
from perennial.literals import text_literal
from perennial.manifest import Manifest
from perennial.model import Model
from perennial.settings import settings
from perennial.spec import ModelSpec

if TYPE_CHECKING:
    import numpy as np

    from perennial.fit import Fitted


def train(
    spec: ModelSpec, *, as_of: str, reason: str = "", force: bool = False, run_id: str = ""
) -> dict[str, Any]:
    """Train a challenger on what is known by the partition date ``as_of`` and judge it. Nothing is promoted here.

    Returns:
        run_id, version, dataset versions, device, metrics, gate (passed, reasons, comparisons) and status.

    Raises:
        DataError: too little labelled data. PerennialError: cuda was asked for and there is none.
    """
    started = time.monotonic()
    published, labels = lake.table("published", spec.name), lake.table("labels", spec.name)
    own = spec.label.source is None
    version, labels_version = lake.version(published), None if own else lake.version(labels)
    if version is None or (not own and labels_version is None):
        raise DataError(
            "nothing was published yet" if version is None else "no label has arrived yet",
            "run the data DAG first, with start and end",
            model=spec.name,
            partition=as_of,
        )
    split = windows(
        spec, as_of, lake.partitions(published if own else labels, version if own else labels_version)
    )
    first, last = split.fit[0], split.holdout[-1]
    champion = registry.champion(spec)
    inputs: dict[str, Any] = {
        "rows": lake.fingerprint(published, first, last, version),
        "spec": spec.digest,
        "labels": "" if own else lake.fingerprint(labels, first, last, labels_version),
        "references": references.refresh(spec),
    }
    done = None if force else manifest.finished(spec.name, "train", as_of, inputs)
    if done and _stands(spec, done, champion):
        return done.result | {"status": "unchanged"}

    from perennial import fit as fitting
    from perennial.register import Recorder

    features = Features(spec, inputs["references"])
    checkpoint = Checkpoint.of(spec.name, as_of, inputs)
    recorder = Recorder(spec, as_of, reason)
    try:
        with _workspace() as name:
            folder = Path(name)
            data = build(spec, features, split, folder, version, labels_version)
            fitted = fitting.fit(spec, data, on_trial=recorder.trial, checkpoint=checkpoint)
            model = Model(fitted.booster, data.encoding, spec.task, data.classes)
            judged = _judge(
                spec, split, model, features, fitting.baselines(spec, data), champion, version, labels_version
            )
            example = next(data.spool.batches(0, min(5, data.spool.rows)))[0]
            texts, files = _companions(spec, data, model, features, split, folder, version, labels_version)
            tags = _tags(spec, as_of, split, fitted, reason, {"published": version, "labels": labels_version})
            registered = recorder.register(
                model,
                fitted,
                example,
                judged["metrics"],
                tags,
                texts | {"evaluation.json": judged | {"champion": champion.version if champion else None}},
                files,
            )
        recorder.finish()
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
                evidence={"as_of": as_of, "error": type(error).__name__},
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
        "rounds": fitted.rounds,
        "external_memory": fitted.external,
        "trials": len(fitted.trials),
        "resumed_rounds": fitted.resumed,
        "metrics": judged["metrics"],
        "reason": reason,
        "status": "trained",
        "gate": {k: judged[k] for k in ("passed", "reasons", "against_champion", "against_baselines")}
        | {"champion": champion.version if champion else None},
        "rows": {"fit": data.fit, "valid": data.spool.rows - data.fit, "holdout": judged["rows"]},
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
            "run_id": registered.run_id,
            "metrics": judged["metrics"],
            "champion": result["gate"]["champion"],
        },
    )
    manifest.write(
        Manifest(
            spec.name,
            "train",
            as_of,
            inputs,
            result,
            outputs={"digest": registered.digest},
            rows_in=data.spool.rows,
            rows_out=data.spool.rows,
            device=fitted.device,
            model_version=registered.version,
            run_id=run_id,
        ),
        started,
    )
    return result


def _stands(spec: ModelSpec, done: Manifest, champion: registry.Version | None) -> bool:
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
    spec: ModelSpec, as_of: str, split: Windows, fitted: Fitted, reason: str, versions: dict[str, int | None]
) -> dict[str, str]:
    return {
        "as_of": as_of,
        "task": spec.task,
        "spec_digest": spec.digest,
        "code_version": manifest.code_version(),
        "dataset_version": f"published@{versions['published']} labels@{versions['labels']}",
        "device": fitted.device,
        "trained_on": f"{split.fit[0]}..{split.valid[-1]}",
        "judged_on": f"{split.holdout[0]}..{split.holdout[-1]}",
        "reason": reason,
    }


def _judge(
    spec: ModelSpec,
    split: Windows,
    challenger: Model,
    features: Features,
    baselines: dict[str, Any],
    champion: registry.Version | None,
    version: int | None,
    labels_version: int | None,
) -> dict[str, Any]:
    """Champion, challenger and baseline on the held-out rows, each with its own features and encoding."""
    import numpy as np

    from perennial import evaluate

    old = registry.load(champion) if champion else None
    old_spec = registry.spec(champion) if champion else spec
    old_features = features if old_spec.digest == spec.digest else Features(old_spec)
    y: list[np.ndarray] = []
    mine: list[np.ndarray] = []
    theirs: list[np.ndarray] = []
    group: list[np.ndarray] = []
    days: list[np.ndarray] = []
    simple: dict[str, list[np.ndarray]] = {name: [] for name in baselines}
    numbering = Lists(spec)
    for table in labelled(spec, split.holdout, version, labels_version):
        rows = features.apply(table)
        target = targets(spec, table.column("__label"), challenger.classes)
        known = np.isfinite(target)  # a class that training never saw cannot be judged
        matrix = challenger.encoding.matrix(rows)
        y.append(target[known])
        mine.append(challenger.predict_matrix(matrix)[known])
        for name, predict in baselines.items():
            simple[name].append(predict(matrix)[known])
        if spec.gate.resample == "days":
            days.append(table.column(lake.PARTITION).cast("date32").cast("int32").to_numpy()[known])
        if spec.group:
            group.append(numbering.number(table)[known])
        if old:
            found = old.predict(rows if old_features is features else old_features.apply(table))
            theirs.append(_same_classes(found, old, challenger)[known])
    if not sum(map(len, y)):
        raise DataError(
            f"no labelled row between {split.holdout[0]} and {split.holdout[-1]}",
            "wait for labels",
            model=spec.name,
        )
    if days and len(np.unique(np.concatenate(days))) < MIN_DAYS:
        raise DataError(
            f"fewer than {MIN_DAYS} of the days {split.holdout[0]} to {split.holdout[-1]} have labels",
            "wait for labels, or set gate.resample to rows",
            model=spec.name,
        )
    truth = np.concatenate(y)
    lists = np.concatenate(group) if group else None

    def loss(parts: list[np.ndarray]) -> np.ndarray:
        return evaluate.losses(spec.task, spec.metric, truth, np.concatenate(parts), lists)

    how: dict[str, Any] = {
        "confidence": spec.gate.confidence,
        "resamples": spec.gate.resamples,
        "seed": spec.training.seed,
        "days": np.concatenate(days) if days else None,
    }
    own = loss(mine)
    to_baselines = {name: evaluate.compare(own, loss(parts), **how) for name, parts in simple.items()}
    to_champion = evaluate.compare(own, loss(theirs), **how) if theirs else None
    values = evaluate.metrics(spec.task, truth, np.concatenate(mine), lists)
    passed, reasons = evaluate.gate(spec, values, to_baselines, to_champion)
    return {
        "passed": passed,
        "reasons": reasons,
        "metrics": values,
        "rows": len(truth),
        "against_baselines": {name: found.as_dict() for name, found in to_baselines.items()},
        "against_champion": to_champion.as_dict() if to_champion else None,
    }


def _same_classes(found: np.ndarray, old: Model, new: Model) -> np.ndarray:
    """The champion's probabilities in the challenger's order of classes; zero for one it does not know."""
    if old.classes == new.classes:
        return found
    import numpy as np

    out = np.zeros((len(found), len(new.classes)), found.dtype)
    for j, name in enumerate(new.classes):
        if name in old.classes:
            out[:, j] = found[:, old.classes.index(name)]
    return out


def _companions(
    spec: ModelSpec,
    data: Dataset,
    model: Model,
    features: Features,
    split: Windows,
    folder: Path,
    version: int | None,
    labels_version: int | None,
) -> tuple[dict[str, Any], list[Path]]:
    """What travels with the model: its spec, the importance of its features, the reference that drift is judged by."""
    import pyarrow.parquet as pq

    from perennial import drift

    gains = model.booster.get_score(importance_type="total_gain")
    whole = sum(gains.values()) or 1.0
    importance = {c: round(float(gains.get(c, 0.0)) / whole, 6) for c in data.encoding.columns}
    path = folder / "reference_rows.parquet"
    writer = None
    for table in labelled(spec, split.fit + split.valid, version, labels_version):
        rows = features.apply(table)
        rows = rows.append_column("prediction", prediction(model, model.predict(rows)))
        rows = rows.append_column(lake.PARTITION, table.column(lake.PARTITION))
        writer = writer or pq.ParquetWriter(path, rows.schema)
        writer.write_table(rows)
    assert isinstance(writer, pq.ParquetWriter)
    writer.close()
    con = lake.connect()
    con.execute(f"CREATE VIEW reference AS SELECT * FROM read_parquet({text_literal(str(path))})")
    multiclass = spec.task == "multiclass"
    categorical = [*features.categorical, *(["prediction"] if multiclass else [])]
    numeric = [c for c in features.columns if c not in categorical] + ([] if multiclass else ["prediction"])
    reference = drift.make_reference(
        con,
        "reference",
        numeric,
        categorical,
        window_days=spec.monitoring.window_days,
        min_rows=spec.monitoring.min_rows,
        personal=spec.data.personal,
    )
    sample = folder / "reference.parquet"
    pq.write_table(
        drift.sample(
            con,
            "reference",
            n=spec.monitoring.report_rows,
            seed=spec.training.seed,
            personal=spec.data.personal,
        ),
        sample,
    )
    return {"spec.json": spec.bundle(), "importance.json": importance, "reference.json": reference}, [sample]


def prediction(model: Model, predicted: np.ndarray) -> Any:
    """The column ``prediction``: the class as text for multiclass, a number otherwise (an Arrow array)."""
    import numpy as np
    import pyarrow as pa

    if model.task != "multiclass":
        return pa.array(predicted.astype(np.float32, copy=False))
    return pa.array(np.asarray(model.classes, dtype=object)[predicted.argmax(axis=1)], pa.string())
