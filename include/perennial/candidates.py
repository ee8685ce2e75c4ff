"""The models that one training makes, one of each window, and how they are judged on the same held-out rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial import lake, registry
from perennial.allowed import MIN_DAYS
from perennial.boost import Checkpoint, Trial
from perennial.dataset import Dataset, build
from perennial.errors import DataError
from perennial.features import Features
from perennial.labelled import Lists, Windows, labelled, targets
from perennial.model import Model
from perennial.spec import ModelSpec

if TYPE_CHECKING:
    import numpy as np

    from perennial.fit import Fitted
    from perennial.shares import Shares
    from perennial.workers import Crew


@dataclass(frozen=True)
class Source:
    """Where the rows come from: the versions of the published rows and of their labels, and their features."""

    spec: ModelSpec
    features: Features
    version: int | None
    labels_version: int | None


@dataclass(frozen=True)
class Candidate:
    """A model made of one window.

    Attributes:
        judge: judges it, as `judge` does. example: a few encoded rows, shape (rows, columns).
        fit, rows: rows fitted on, and those together with the rows for early stopping.
    """

    kind: str
    split: Windows
    fitted: Fitted
    model: Model
    judge: Callable[[], dict[str, Any]]
    example: np.ndarray
    fit: int
    rows: int

    @cached_property
    def judged(self) -> dict[str, Any]:
        """As `judge` returns it, found out when it is first asked for."""
        return self.judge() | {"window": self.kind}

    @property
    def loss(self) -> float:
        """Mean loss on the held-out rows."""
        return float(self.judged["loss"])


def best(
    source: Source,
    splits: Mapping[str, Windows],
    champion: registry.Version | None,
    folder: Path,
    checkpoints: Mapping[str, Checkpoint],
    on_trial: Callable[[Trial], None],
    workers: int,
    meeting: str | None,
) -> Candidate:
    """Fit a model on each window; of several, the one that loses least on the held-out rows.

    Args:
        splits: by name of the window; all hold out the same dates. checkpoints: one a window.
        workers, meeting: as `train.train` takes them.
    """
    found: Candidate | None = None
    with _crew(workers, meeting) as crew:
        for kind, split in splits.items():
            made = _fit(source, kind, split, champion, folder / kind, checkpoints[kind], on_trial, crew)
            found = made if found is None or made.loss < found.loss else found
    assert found is not None
    return found


@contextlib.contextmanager
def _crew(workers: int, meeting: str | None) -> Iterator[Crew | None]:
    if workers == 1:
        yield None
        return
    from perennial.workers import crew

    with crew(workers, meeting) as found:
        yield found


def _fit(
    source: Source,
    kind: str,
    split: Windows,
    champion: registry.Version | None,
    folder: Path,
    checkpoint: Checkpoint,
    on_trial: Callable[[Trial], None],
    crew: Crew | None,
) -> Candidate:
    from perennial import fit as fitting

    spec = source.spec
    data = _rows(source, split, folder, crew)
    fitted = fitting.fit(spec, data, on_trial=on_trial, checkpoint=checkpoint)
    model = Model(fitted.booster, data.encoding, spec.task, data.classes)
    judging = partial(judge, source, split, model, fitting.baselines(spec, data), champion)
    return Candidate(kind, split, fitted, model, judging, data.head(5), data.fit, data.rows)


def _rows(source: Source, split: Windows, folder: Path, crew: Crew | None) -> Dataset | Shares:
    """The rows that are fitted on: here in ``folder``, or on the crew's workers."""
    spec, features = source.spec, source.features
    if crew is None:
        folder.mkdir()
        return build(spec, features, split, folder, source.version, source.labels_version)
    from perennial import shares

    place = shares.Source(spec, features.versions, source.version, source.labels_version)
    return shares.build(crew, place, split, tuple(features.columns))


def judge(
    source: Source,
    split: Windows,
    challenger: Model,
    baselines: dict[str, Any],
    champion: registry.Version | None,
) -> dict[str, Any]:
    """Champion, challenger and baseline on the held-out rows, each with its own features and encoding."""
    import numpy as np

    from perennial import evaluate

    spec, features = source.spec, source.features
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
    for table in labelled(spec, split.holdout, source.version, source.labels_version):
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
        "loss": float(own.mean()),
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
