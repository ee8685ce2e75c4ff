"""The ledger of a model: its records, the latest first, and whether the chain is whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from perennial.console import time_limit
from perennial.core.errors import LedgerError, PerennialError
from perennial.storage import ledger
from perennial.storage.ledger import LedgerKind, LedgerRecord

#: Records of a page.
SHOWN_RECORDS = 100


@dataclass(frozen=True)
class Verification:
    """Whether the chain of records is whole.

    Attributes:
        state: ``ok``, ``bad``, or ``unknown`` if that could not be found out.
        text: in words.
        remedy: what to do; empty if nothing has to be done.
    """

    state: str
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class LedgerPage:
    """The page.

    Attributes:
        model: name of the model.
        total: number of records.
        kinds: number of records by kind.
        kind: that is shown; empty for all.
        records: the latest first.
        before: sequence number from which earlier records are on the next page; 0 if there are none.
        verification: of the chain.
    """

    model: str
    total: int
    kinds: dict[str, int]
    kind: str
    records: list[LedgerRecord]
    before: int
    verification: Verification


def compose(model: str, kind: str = "", before: int = 0) -> LedgerPage:
    """Read a page of the ledger.

    Args:
        model: name of the model.
        kind: of the records; all when empty.
        before: only records with a smaller sequence number; the latest ones when 0.

    Raises:
        PerennialError: there is no such kind.
        StorageError: the ledger cannot be read.
    """
    records = ledger.records(model)
    selected = of_kind(records, kind)
    if before:
        selected = [record for record in selected if record["sequence"] < before]
    shown = selected[::-1][:SHOWN_RECORDS]
    return LedgerPage(
        model,
        len(records),
        dict(sorted(Counter(record["kind"] for record in records).items())),
        kind,
        shown,
        shown[-1]["sequence"] if len(selected) > len(shown) else 0,
        _verify(model),
    )


def of_kind(records: Iterable[LedgerRecord], kind: str) -> list[LedgerRecord]:
    """The records of a kind, in order; all if it is empty.

    Raises:
        PerennialError: there is no such kind.
    """
    if kind and kind not in list(LedgerKind):
        raise PerennialError(
            f"the ledger has no kind of records called {kind!r}", f"the kinds are: {', '.join(LedgerKind)}"
        )
    return [record for record in records if not kind or record["kind"] == kind]


def _verify(model: str) -> Verification:
    try:
        count = time_limit.within(
            time_limit.page_seconds() / 2, "the verification of the ledger", lambda: ledger.verify(model)
        )
    except LedgerError as error:
        return Verification("bad", error.cause, error.remedy)
    except PerennialError as error:
        return Verification(
            "unknown",
            error.cause,
            f"perennial ledger {model} verifies it without a time limit; {error.remedy}",
        )
    return Verification("ok", f"{count:,} records, each with the hash of the one before it: none was changed")
