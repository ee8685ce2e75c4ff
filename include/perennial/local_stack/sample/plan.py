"""The plan of the demonstration for each sample model: its history, its nights, and its end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """The plan for one model.

    Attributes:
        first: first partition date.
        trained_until: last partition date of the history that the first champion is trained on.
        latest: last partition date that is run.
        stop_after_retraining: end early, two nights after a retraining that was requested by monitoring has
            brought a new champion.
        manual_training_on: partition date of a declined retraining after which the training is triggered by hand.
    """

    model: str
    first: str
    trained_until: str
    latest: str
    stop_after_retraining: bool
    manual_training_on: str = ""


#: Nights that the new champion scores before the demonstration ends.
NIGHTS_AFTER_RETRAINING = 2

PLANS = (
    Plan("flight_late", "2013-01-01", "2013-03-31", "2013-05-12", True),
    Plan("flight_delay", "2013-01-01", "2013-03-31", "2013-05-12", True, manual_training_on="2013-04-14"),
    Plan("digits", "2013-01-01", "2013-01-20", "2013-01-28", False),
)
