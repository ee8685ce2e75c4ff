"""Findings that a person looked at and let stand, with the reason and the last day on which that holds."""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("waivers.toml")
#: What identifies a finding, by its kind.
IDENTITY = {"secret": ("sha1",), "licence": ("package",), "vulnerability": ("package", "id")}


class WaiverError(Exception):
    """The file of waivers cannot be used; the message names the entry and what to do."""


def waived(kind: str, today: datetime.date | None = None, file: Path = FILE) -> set[tuple[str, ...]]:
    """The identities of one kind's waived findings.

    Args:
        kind: ``secret``, ``licence`` or ``vulnerability``.
        today: the day on which the waivers have to hold.
        file: the file of waivers.

    Returns:
        What `IDENTITY` lists for the kind, one tuple for each waiver.

    Raises:
        WaiverError: an entry has no reason, no day, or a day that is over; or a key is missing or unknown.
    """
    today = today or datetime.datetime.now(datetime.UTC).date()
    entries: dict[str, list[dict[str, Any]]] = tomllib.loads(file.read_text("utf-8"))
    if unknown := set(entries) - set(IDENTITY):
        raise WaiverError(f"{file.name}: {min(unknown)}: allowed are {', '.join(IDENTITY)}")
    identities = set()
    for number, entry in enumerate(entries.get(kind, []), 1):
        where = f"{file.name}: {kind} {number}"
        wanted = {*IDENTITY[kind], "reason", "until"}
        if set(entry) != wanted:
            raise WaiverError(f"{where}: has {', '.join(entry)}; wanted are {', '.join(sorted(wanted))}")
        if not str(entry["reason"]).strip():
            raise WaiverError(f"{where}: the reason is empty")
        if not isinstance(entry["until"], datetime.date) or entry["until"] < today:
            raise WaiverError(
                f"{where}: holds until {entry['until']}. What to do: look again; mend it, or give a later day"
            )
        identities.add(tuple(str(entry[key]) for key in IDENTITY[kind]))
    return identities
