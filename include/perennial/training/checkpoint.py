"""What an interrupted boosting goes on from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from perennial.core.settings import settings
from perennial.storage import object_store

if TYPE_CHECKING:
    import xgboost

log = logging.getLogger("perennial")

#: Seconds between two checkpoints, unless PERENNIAL_CHECKPOINT_SECONDS says another number.
CHECKPOINT_SECONDS = 60.0


_LOSSES = "perennial_losses"


@dataclass(frozen=True)
class Trial:
    """One point of the search: its parameters, its loss on the early-stopping rows, the rounds it took."""

    number: int
    params: dict[str, float]
    loss: float
    rounds: int
    seconds: float

    @property
    def name(self) -> str:
        """What its checkpoint calls it."""
        return trial_name(self.number)


def trial_name(number: int) -> str:
    """What a checkpoint calls a trial."""
    return f"trial {number}"


class Checkpoint:
    """What is done of one training; several threads may tell it of their trials.

    Args:
        uri: folder on the lake, of one dataset version and one spec; None keeps nothing.

    Attributes:
        trials: those that are done.
        resumed: rounds that were found done, those of whole trials included.
        halted: set to end what is boosted meanwhile: nobody needs it any more.
    """

    def __init__(self, uri: str | None) -> None:
        self.uri = uri
        self.resumed = 0
        self.halted = False
        self._every = float(os.environ.get("PERENNIAL_CHECKPOINT_SECONDS") or CHECKPOINT_SECONDS)
        self._lock = threading.Lock()
        self._began, self._saved = time.monotonic(), dict[str, float]()
        found = self._read("trials.json")
        self.trials = [Trial(**item) for item in json.loads(found)] if found else []

    @classmethod
    def of(cls, model: str, as_of: str, inputs: dict[str, Any]) -> Checkpoint:
        """The checkpoint of a training from these inputs."""
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
        return cls(f"{settings().lake}/checkpoints/{model}/{as_of}-{digest}")

    def trial(self, number: int, params: dict[str, float]) -> Trial | None:
        """A trial that is done, with these very parameters."""
        found = next((t for t in self.trials if (t.number, t.params) == (number, params)), None)
        if found is None:
            return None
        self._resume(found.rounds)
        return found

    def add(self, trial: Trial) -> None:
        """Note a trial that is done."""
        with self._lock:
            self.trials = [t for t in self.trials if t.number != trial.number] + [trial]
            if self.uri:
                object_store.write_text(
                    f"{self.uri}/trials.json", json.dumps([asdict(t) for t in self.trials])
                )
                object_store.delete_file(self._place(trial.name))

    def booster(self, name: str) -> tuple[bytearray | None, list[float]]:
        """The booster under way that is called ``name``, if there is one, and its losses so far."""
        import xgboost

        raw = self._read(_file(name))
        if not raw:
            return None, []
        booster = xgboost.Booster(model_file=bytearray(raw))
        losses = [float(x) for x in json.loads(booster.attr(_LOSSES) or "[]")]
        self._resume(booster.num_boosted_rounds())
        log.info("%s goes on after %d rounds", name, booster.num_boosted_rounds())
        booster.set_attr(**{_LOSSES: None})
        return booster.save_raw("ubj"), losses

    def keep(self, name: str, booster: xgboost.Booster, losses: list[float]) -> None:
        """Save a booster under way, if the last time is long enough ago."""
        if not self.uri or time.monotonic() - self._saved.get(name, self._began) < self._every:
            return
        booster.set_attr(**{_LOSSES: json.dumps(losses)})
        object_store.write_bytes(self._place(name), bytes(booster.save_raw("ubj")))
        booster.set_attr(**{_LOSSES: None})
        self._saved[name] = time.monotonic()

    def clear(self) -> None:
        """Forget it: the training is registered."""
        if self.uri:
            object_store.delete_files(self.uri)

    def _place(self, name: str) -> str:
        return f"{self.uri}/{_file(name)}"

    def _resume(self, rounds: int) -> None:
        with self._lock:
            self.resumed += rounds

    def _read(self, name: str) -> bytes:
        try:
            return object_store.read_bytes(f"{self.uri}/{name}") if self.uri else b""
        except FileNotFoundError:
            return b""


def _file(name: str) -> str:
    return f"{name.replace(' ', '-')}.ubj"
