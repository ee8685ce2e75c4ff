"""Which version was champion at a time, as the ledger says."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta

from perennial.core.dates import utc_timestamp
from perennial.core.errors import DataError
from perennial.lifecycle.champion import CHAMPION_CHANGES
from perennial.storage import ledger
from perennial.storage.ledger import LedgerRecord

#: Changes that are looked at: all of one day, unless somebody promotes more often than that.
MAX_CHANGES = 100


@dataclass(frozen=True)
class ChampionAtTime:
    """The champion at a time.

    Attributes:
        model: name of the model.
        until: the time (UTC).
        version: the champion; empty if there was none yet.
        change: the ledger's record that made it champion; None if there was none yet.
        same_day: the ledger's records of all changes on the day of that time, in order.
    """

    model: str
    until: str
    version: str = ""
    change: LedgerRecord | None = None
    same_day: list[LedgerRecord] = field(default_factory=list)


def champion_at(model: str, text: str = "") -> ChampionAtTime:
    """Find the champion at the end of a day, or at a moment.

    Args:
        model: name of the model.
        text: a day, YYYY-MM-DD, or a moment, YYYY-MM-DDThh:mm, both in UTC unless it has another offset; today when
            empty.

    Raises:
        DataError: it is no day and no moment, or in the future.
        StorageError: the ledger cannot be read.
    """
    moment = _parse(model, text or datetime.now(UTC).date().isoformat())
    day = utc_timestamp(moment - timedelta(seconds=1))[:10]
    changes = ledger.find(
        model,
        *CHAMPION_CHANGES,
        decisions=tuple(CHAMPION_CHANGES.values()),
        until=utc_timestamp(moment),
        last=MAX_CHANGES,
    )
    if not changes:
        return ChampionAtTime(model, utc_timestamp(moment))
    last = changes[-1]
    same_day = [record for record in changes if record["recorded_at"].startswith(day)]
    return ChampionAtTime(model, utc_timestamp(moment), last["model_version"], last, same_day)


def _parse(model: str, text: str) -> datetime:
    """The moment that a text means; of a day, its end."""
    try:
        if len(text) == len("2024-01-31"):
            moment = datetime.combine(date.fromisoformat(text), time(), UTC) + timedelta(days=1)
            is_future = date.fromisoformat(text) > datetime.now(UTC).date()
        else:
            moment = datetime.fromisoformat(text)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            is_future = moment > datetime.now(UTC)
            # the ledger has whole seconds: a change in the second of the moment has happened
            moment += timedelta(seconds=1)
    except ValueError:
        raise DataError(
            f"{text!r} is neither a day nor a moment",
            "write YYYY-MM-DD, or YYYY-MM-DDThh:mm (UTC)",
            model=model,
        ) from None
    if is_future:
        raise DataError(f"{text} is in the future", "check the year", model=model)
    return moment
