"""What a step that runs elsewhere leaves for its caller: one small file with its result, or with its error."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from perennial.core import errors, runtime
from perennial.core.errors import PerennialError
from perennial.storage import object_store


@dataclass
class StepOutcome:
    """A result that is still to come."""

    result: dict[str, Any] = field(default_factory=dict)


def check_library_digest(digest: str | None) -> None:
    """Stop before any work where this library is not the one that the caller has.

    Raises:
        PerennialError: the digests differ.
    """
    mine = runtime.library_digest()
    if digest is not None and digest != mine:
        raise PerennialError(
            f"the library here has digest {mine[:12]}…, its caller's is {digest[:12]}…: "
            "the trainer image and Airflow are of different versions",
            "build and roll out both images from one commit, or name the matching image in the compute profile",
        )


@contextmanager
def step_outcome(uri: str | None) -> Iterator[StepOutcome]:
    """Write what the block results in to ``uri``, last of all; nothing where that is None.

    Raises:
        PerennialError: whatever the block raises, once it is written.
    """
    here = StepOutcome()
    try:
        yield here
    except PerennialError as error:
        if uri:
            told = {"type": type(error).__name__, "cause": error.cause, "remedy": error.remedy,
                    "model": error.model, "partition": error.partition}  # fmt: skip
            object_store.write_text(uri, json.dumps({"error": told}))
        raise
    if uri:
        finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        object_store.write_text(
            uri, json.dumps({"result": here.result, "finished_at": finished}, default=str)
        )


def read_result(uri: str) -> dict[str, Any] | None:
    """The result at ``uri``; None where the step left nothing.

    Raises:
        PerennialError: the step failed; of the same type and words as where it ran.
    """
    try:
        found = json.loads(object_store.read_text(uri))
    except FileNotFoundError:
        return None
    if error := found.get("error"):
        kind = getattr(errors, error.pop("type"), PerennialError)
        raise kind(error["cause"], error["remedy"], model=error["model"], partition=error["partition"])
    return dict(found["result"])
