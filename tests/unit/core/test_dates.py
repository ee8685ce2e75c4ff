"""Dates and moments as text."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from perennial.core import dates
from perennial.core.errors import PerennialError


def test_dates() -> None:
    assert dates.dates("2024-02-28", "2024-03-01") == ["2024-02-28", "2024-02-29", "2024-03-01"]
    assert dates.dates("2024-01-01") == ["2024-01-01"]
    assert dates.add_days("2024-01-01", -1) == "2023-12-31"
    with pytest.raises(PerennialError, match="not a date"):
        dates.add_days("2024-01", 1)
    last = dates.add_days("2024-01-01", 3659)
    assert len(dates.dates("2024-01-01", last)) == 3660
    with pytest.raises(PerennialError, match="are 3,661 dates; a range has at most 3,660"):
        dates.dates("2024-01-01", dates.add_days(last, 1))


def test_moments_are_written_in_utc() -> None:
    moment = datetime(2024, 3, 1, 0, 30, tzinfo=timezone(timedelta(hours=2)))
    assert dates.utc_timestamp(moment) == "2024-02-29T22:30:00Z"
    assert dates.utc_now() >= "2024-"
