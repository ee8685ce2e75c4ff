"""Dates and ranges of dates as text."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from perennial.core import dates
from perennial.core.dates import DateRange
from perennial.core.errors import PerennialError


def test_dates() -> None:
    assert dates.dates("2024-02-28", "2024-03-01") == ["2024-02-28", "2024-02-29", "2024-03-01"]
    assert dates.dates("2024-01-01") == ["2024-01-01"]
    assert dates.add_days("2024-01-01", -1) == "2023-12-31"


@pytest.mark.parametrize(
    "text", ["", "2024-1-1", "20240101", "2024-02-30", "2024-W01-1", "../../x", "2024-01-01T00", None]
)
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(PerennialError, match="not a date"):
        dates.parse_date(text)
    with pytest.raises(PerennialError, match="not a date"):
        DateRange("2024-01-01", text)


def test_ranges_are_bounded() -> None:
    with pytest.raises(PerennialError, match="before start"):
        dates.dates("2024-01-02", "2024-01-01")
    with pytest.raises(PerennialError, match="before start"):
        DateRange("2024-01-02", "2024-01-01")
    with pytest.raises(PerennialError, match="ten years"):
        dates.dates("2024-01-01", "2999-01-01")


def test_a_range_of_dates() -> None:
    span = DateRange("2024-02-28", "2024-03-01")
    assert str(span) == span.compact == "2024-02-28..2024-03-01"
    assert span.days == 3
    assert span.dates() == ["2024-02-28", "2024-02-29", "2024-03-01"]
    assert "2024-02-28" in span and "2024-03-01" in span
    assert "2024-02-27" not in span and "2024-03-02" not in span and None not in span
    assert span.shift(-1) == DateRange("2024-02-27", "2024-02-29")


def test_a_range_is_read_as_it_is_written() -> None:
    span = DateRange("2023-12-31", "2024-01-01")
    assert DateRange.parse(str(span)) == span
    one = DateRange.parse("2024-01-01")
    assert one == DateRange("2024-01-01", "2024-01-01")
    assert (one.days, one.compact, str(one)) == (1, "2024-01-01", "2024-01-01..2024-01-01")
    for text in ("", "2024-01-01..", "..2024-01-01", "2024-01-01...2024-01-02", "2024-01-02..2024-01-01"):
        with pytest.raises(PerennialError):
            DateRange.parse(text)


def test_dates_are_grouped_into_ranges_without_gaps() -> None:
    days = ["2024-03-02", "2024-02-28", "2024-02-29", "2024-03-05", "2024-02-29"]
    assert list(dates.contiguous_ranges(days)) == [
        DateRange("2024-02-28", "2024-02-29"),
        DateRange("2024-03-02", "2024-03-02"),
        DateRange("2024-03-05", "2024-03-05"),
    ]
    assert list(dates.contiguous_ranges([])) == []


def test_moments_are_written_in_utc() -> None:
    moment = datetime(2024, 3, 1, 0, 30, tzinfo=timezone(timedelta(hours=2)))
    assert dates.utc_timestamp(moment) == "2024-02-29T22:30:00Z"
    assert dates.utc_now() >= "2024-"
