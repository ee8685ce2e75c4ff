"""The file that passes the result or error of a step in another process or pod to its caller."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from perennial.core import errors, runtime, unexpected_errors
from perennial.core.dates import utc_now
from perennial.core.errors import PerennialError
from perennial.storage import object_store


@dataclass
class StepOutcome:
    """The result of a step, filled in when it ends."""

    result: dict[str, Any] = field(default_factory=dict)


def check_library_digest(digest: str | None) -> None:
    """Refuse to run a step for a caller that has another version of this library.

    Args:
        digest: `runtime.library_digest` of the caller; None is not checked.

    Raises:
        PerennialError: the digests differ.
    """
    actual = runtime.library_digest()
    if digest is not None and digest != actual:
        raise PerennialError(
            f"this library has digest {actual[:12]}…, the caller's has {digest[:12]}…: "
            "the trainer image and Airflow are of different versions",
            "build and roll out both images from one commit, or name the matching image in the compute profile",
        )


@contextmanager
def step_outcome(uri: str | None) -> Iterator[StepOutcome]:
    """Write the result that the block sets, or its error, to a file when the block ends.

    Args:
        uri: the file; None writes nothing.

    Raises:
        PerennialError: the error of the block, after it was written.
    """
    outcome = StepOutcome()
    try:
        yield outcome
    except Exception as failure:
        error = unexpected_errors.translate(failure, "the step")
        if uri:
            fields = {"type": type(error).__name__, "cause": error.cause, "remedy": error.remedy,
                      "model": error.model, "partition": error.partition}  # fmt: skip
            object_store.write_text(uri, json.dumps({"error": fields}))
        if error is failure:
            raise
        raise error from failure
    if uri:
        content = {"result": outcome.result, "finished_at": utc_now()}
        object_store.write_text(uri, json.dumps(content, default=str))


def read_result(uri: str) -> dict[str, Any] | None:
    """Read a step's result; None if the step wrote nothing.

    Args:
        uri: the file.

    Raises:
        PerennialError: the step failed; type and texts are those of the step's error.
    """
    try:
        content = json.loads(object_store.read_text(uri))
    except FileNotFoundError:
        return None
    if error := content.get("error"):
        kind = getattr(errors, error.pop("type"), PerennialError)
        raise kind(error["cause"], error["remedy"], model=error["model"], partition=error["partition"])
    return dict(content["result"])
