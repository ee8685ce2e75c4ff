"""The checkpoint of a training, from which an interrupted search and boosting continue."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from perennial.core.settings import settings
from perennial.storage import object_store

if TYPE_CHECKING:
    import xgboost

log = logging.getLogger("perennial")

#: Seconds between two checkpoints; PERENNIAL_CHECKPOINT_SECONDS overrides it.
CHECKPOINT_SECONDS = 60.0
#: Age of a checkpoint that no training continues any more.
STALE_SECONDS = 30 * 86_400
#: The booster's attribute that holds its losses so far.
_LOSSES = "perennial_losses"


#: Round, metric on the rows to fit on (None if it is not known), and metric on the rows for early stopping.
CurvePoint = tuple[int, float | None, float]
#: XGBoost's name of the metric, and its points.
LearningCurve = tuple[str, Sequence[CurvePoint]]


@dataclass(frozen=True)
class SearchTrial:
    """One trial of the hyperparameter search.

    Attributes:
        number: number of the trial, from 0.
        params: XGBoost parameters of the trial.
        loss: best loss on the early-stopping rows.
        rounds: boosting rounds up to the best loss.
        seconds: duration.
        curve: points of its learning curve.
        boosted: boosting rounds in all, those without an improvement too.
        group_categories: whether its trees divide categories into any two groups, rather than by their order.
    """

    number: int
    params: dict[str, float]
    loss: float
    rounds: int
    seconds: float
    curve: tuple[CurvePoint, ...] = ()
    boosted: int = 0
    group_categories: bool = False

    @property
    def name(self) -> str:
        """Name of its booster in a checkpoint."""
        return search_trial_name(self.number)


def _trial(stored: dict[str, Any]) -> SearchTrial:
    """A trial as it was stored; one from before there were learning curves has none."""
    curve = tuple((int(n), train, float(valid)) for n, train, valid in stored.get("curve", ()))
    return SearchTrial(**{**stored, "curve": curve})


def search_trial_name(number: int) -> str:
    """Name of a search trial's booster in a checkpoint."""
    return f"trial {number}"


class Checkpoint:
    """The finished search trials and unfinished boosters of a training; thread-safe.

    Args:
        uri: folder in the lake, for one dataset version and one spec; None stores nothing.

    Attributes:
        uri: the folder.
        trials: finished search trials.
        resumed: number of rounds that were not boosted again, including those of finished trials.
        halted: set to stop all boosting that uses this checkpoint, because its results are no longer needed.
    """

    def __init__(self, uri: str | None) -> None:
        self.uri = uri
        self.resumed = 0
        self.halted = False
        self._seconds = float(os.environ.get("PERENNIAL_CHECKPOINT_SECONDS") or CHECKPOINT_SECONDS)
        self._lock = threading.Lock()
        self._started, self._saved = time.monotonic(), dict[str, float]()
        stored = self._read("trials.json")
        self.trials = [_trial(item) for item in json.loads(stored)] if stored else []

    @classmethod
    def for_inputs(cls, model: str, as_of: str, inputs: dict[str, Any]) -> Checkpoint:
        """Open the checkpoint of a training with these inputs.

        Args:
            model: name of the model.
            as_of: partition date of the training.
            inputs: what the result depends on, by digest or version.
        """
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
        return cls(f"{settings().lake}/checkpoints/{model}/{as_of}-{digest}")

    @staticmethod
    def remove_stale(model: str) -> None:
        """Remove what trainings of a model left that were killed long ago and never tried again."""
        folder, before = f"{settings().lake}/checkpoints/{model}", time.time() - STALE_SECONDS
        for path, stat in object_store.list_files(folder, recursive=True).items():
            if stat.modified_ns < before * 1e9:
                object_store.delete_file(f"{folder}/{path}")

    def find_trial(self, number: int, params: dict[str, float]) -> SearchTrial | None:
        """The finished search trial with this number and exactly these parameters; None if there is none."""
        trial = next((t for t in self.trials if (t.number, t.params) == (number, params)), None)
        if trial is None:
            return None
        self._count_resumed(trial.rounds)
        return trial

    def add_trial(self, trial: SearchTrial) -> None:
        """Store a finished trial, and delete its booster."""
        with self._lock:
            self.trials = [t for t in self.trials if t.number != trial.number] + [trial]
            if self.uri:
                self._write("trials.json", json.dumps([asdict(t) for t in self.trials]).encode())
                object_store.delete_file(self._booster_uri(trial.name))

    def load_booster(self, name: str) -> tuple[bytearray | None, list[float]]:
        """Load an unfinished booster.

        Args:
            name: name of the booster.

        Returns:
            The model as UBJ, and its losses by round; None and an empty list if there is none.
        """
        import xgboost

        raw = self._read(_booster_file(name))
        if not raw:
            return None, []
        booster = xgboost.Booster(model_file=bytearray(raw))
        losses = [float(x) for x in json.loads(booster.attr(_LOSSES) or "[]")]
        self._count_resumed(booster.num_boosted_rounds())
        log.info("%s continues after %d rounds", name, booster.num_boosted_rounds())
        booster.set_attr(**{_LOSSES: None})
        return booster.save_raw("ubj"), losses

    def save_booster(self, name: str, booster: xgboost.Booster, losses: list[float]) -> None:
        """Save an unfinished booster, unless it was saved less than `CHECKPOINT_SECONDS` ago.

        Args:
            name: name of the booster.
            booster: the booster.
            losses: its losses by round.
        """
        if not self.uri or time.monotonic() - self._saved.get(name, self._started) < self._seconds:
            return
        booster.set_attr(**{_LOSSES: json.dumps(losses)})
        self._write(_booster_file(name), bytes(booster.save_raw("ubj")))
        booster.set_attr(**{_LOSSES: None})
        self._saved[name] = time.monotonic()

    def clear(self) -> None:
        """Delete the checkpoint, once the training is registered."""
        if self.uri:
            object_store.delete_files(self.uri)

    def _booster_uri(self, name: str) -> str:
        return f"{self.uri}/{_booster_file(name)}"

    def _count_resumed(self, rounds: int) -> None:
        with self._lock:
            self.resumed += rounds

    def _write(self, name: str, content: bytes) -> None:
        """Write a file of the checkpoint, with the digest of its content before it."""
        digest = hashlib.sha256(content).hexdigest().encode()
        object_store.write_bytes(f"{self.uri}/{name}", digest + b"\n" + content)

    def _read(self, name: str) -> bytes:
        """Read a file of the checkpoint; empty if there is none, or if it is not what was written."""
        try:
            stored = object_store.read_bytes(f"{self.uri}/{name}") if self.uri else b""
        except FileNotFoundError:
            return b""
        digest, _, content = stored.partition(b"\n")
        if stored and hashlib.sha256(content).hexdigest().encode() != digest:
            log.warning("%s/%s is damaged: this part of the training begins anew", self.uri, name)
            return b""
        return content


def _booster_file(name: str) -> str:
    return f"{name.replace(' ', '-')}.ubj"
