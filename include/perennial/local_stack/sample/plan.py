"""What the loop does with the sample's models: how far the first training looks, and how long nights pass."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """One model's part of the loop.

    Attributes:
        first: first partition date. trained_until: last date of the history that the first champion learns from.
        latest: no night after this one is played.
        until_retrained: stop early, two nights after a retraining that drift fired has brought a new champion.
        doubted: the date of a verdict after which somebody triggers the training by hand, though monitoring said no.
    """

    model: str
    first: str
    trained_until: str
    latest: str
    until_retrained: bool
    doubted: str = ""


#: Nights that the new champion scores before the loop counts as closed.
NIGHTS_AFTER = 2

PLANS = (
    Plan("flight_late", "2013-01-01", "2013-03-31", "2013-05-12", True),
    Plan("flight_delay", "2013-01-01", "2013-03-31", "2013-05-12", True, doubted="2013-04-14"),
    Plan("digits", "2013-01-01", "2013-01-20", "2013-01-28", False),
)
