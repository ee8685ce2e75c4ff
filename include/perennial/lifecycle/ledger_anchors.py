"""Anchors of the ledger: number and hash of a model's last record, in places that are not the lake.

Whoever may write the lake could remove the ledger's last records, or write a whole chain anew with right hashes. Both
contradict the anchors, unless these were changed, too. One is a tag of the model in MLflow. Others are files of a
folder or bucket that the team names (``PERENNIAL_LEDGER_ANCHORS``): one for each anchor, never replaced, so that with
S3's object lock nobody can change them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from perennial.core.dates import utc_now
from perennial.core.errors import PerennialError
from perennial.core.settings import settings
from perennial.modeling import registry
from perennial.storage import ledger, object_store

log = logging.getLogger("perennial")
#: The tag of a registered model.
TAG = "perennial.ledger_head"


class Anchor(NamedTuple):
    """One anchor.

    Attributes:
        sequence: number of a record.
        hash: its hash.
        location: where the anchor is, in words.
    """

    sequence: int
    hash: str
    location: str


def write(model: str) -> None:
    """Anchor a model's last record; an anchor that the ledger contradicts stays, because it shows what is missing.

    Args:
        model: name of the model.

    Raises:
        PerennialError: MLflow or the folder cannot be reached.
    """
    sequence, digest = ledger.last(model)
    if not sequence:
        return
    if folder := settings().ledger_anchors:
        uri = f"{folder}/{model}/{sequence:09d}-{digest}.json"
        if not object_store.exists(uri):
            content = {"model": model, "sequence": sequence, "hash": digest, "anchored_at": utc_now()}
            object_store.write_text(uri, json.dumps(content))
    anchored = _in_mlflow(model)
    known = ledger.hashes(model, [anchored.sequence]) if anchored else {}
    if anchored is None or not _contradiction(anchored, sequence, known):
        registry.set_model_tag(model, TAG, f"{sequence}:{digest}")


def models() -> list[str]:
    """Names of the models that have anchors in the folder, whatever is left of their ledgers; none without a folder.

    Raises:
        StorageError: the folder cannot be read.
    """
    folder = settings().ledger_anchors
    return object_store.list_folders(folder) if folder else []


def write_quietly(model: str, head: str) -> None:
    """Anchor the ledger if its last record is another one than before; a failure is only logged.

    Args:
        model: name of the model.
        head: `ledger.head` before.
    """
    try:
        if ledger.head(model) != head:
            write(model)
    except PerennialError as error:
        log.warning(
            "The ledger of %s could not be anchored, the next step tries again: %s", model, error.cause
        )


@contextmanager
def anchored(model: str) -> Iterator[None]:
    """Anchor what is recorded in the block, even if it fails."""
    head = ledger.head(model)
    try:
        yield
    finally:
        write_quietly(model, head)


def contradictions(model: str) -> list[str]:
    """What the anchors of a model's ledger say against its records, in words.

    Args:
        model: name of the model.

    Raises:
        PerennialError: MLflow or the folder cannot be reached.
    """
    anchors = list(_anchors(model))
    last, _ = ledger.last(model)
    known = ledger.hashes(model, {anchor.sequence for anchor in anchors}) if anchors else {}
    return list(filter(None, (_contradiction(anchor, last, known) for anchor in anchors)))


def _anchors(model: str) -> Iterator[Anchor]:
    anchored = _in_mlflow(model)
    if anchored is not None:
        yield anchored
    if folder := settings().ledger_anchors:
        for name in sorted(object_store.list_files(f"{folder}/{model}")):
            sequence, _, digest = name.removesuffix(".json").partition("-")
            if name.endswith(".json") and sequence.isdigit():
                yield Anchor(int(sequence), digest, f"{folder}/{model}/{name}")


def _in_mlflow(model: str) -> Anchor | None:
    """The anchor in MLflow; None if the model is not registered yet, or has none."""
    text = registry.model_tags(model).get(TAG, "")
    sequence, _, digest = text.partition(":")
    return Anchor(int(sequence), digest, f"tag {TAG} in MLflow") if sequence.isdigit() else None


def _contradiction(anchor: Anchor, last: int, known: Mapping[int, str]) -> str:
    """Why a ledger cannot be the one that was anchored; empty if it can.

    Args:
        anchor: the anchor.
        last: number of the ledger's last record.
        known: hashes of its records by number, among them that of the anchor's.
    """
    if last < anchor.sequence:
        count = f"the ledger has {last} records and had {anchor.sequence}"
        return f"{count} ({anchor.location}): the last ones are missing"
    if known.get(anchor.sequence) != anchor.hash:
        return f"record {anchor.sequence} of the ledger is not the one that was appended ({anchor.location})"
    return ""
