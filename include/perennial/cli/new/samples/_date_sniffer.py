"""How the dates and times of a column are written, and whether the day or the month comes first."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from statistics import median

from perennial.feeds.text_casts import QUARTER, written_pattern

__all__ = ["date_formats", "day_first", "day_precedes", "moments", "parsed", "swapped"]

_DATES = (
    "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d.%m.%y", "%d/%m/%Y", "%m/%d/%Y", "%d/%m/%y", "%m/%d/%y",
    "%d-%m-%Y", "%m-%d-%Y", "%d-%m-%y", "%m-%d-%y", "%m.%d.%Y", "%m.%d.%y", "%d %m %Y", "%Y %m %d",
    "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%d %b %y", "%d/%b/%Y", "%d.%b.%Y", "%d%b%Y", "%Y-%b-%d", "%d %B %Y",
    "%d-%B-%Y",
    "%d. %B %Y", "%d. %b %Y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%B %d %Y", "%a, %d %b %Y", "%a %d %b %Y",
    "%A, %B %d, %Y", "%A, %d %B %Y", "%a %b %d %Y", "%b. %d, %Y",
)  # fmt: skip
_TIMES = (
    "%H:%M:%S", "%H:%M", "%H:%M:%S.%f", "%I:%M:%S %p", "%I:%M %p", "%I:%M%p", "%I:%M:%S%p", "%H.%M.%S", "%H.%M",
    "%H:%M:%S,%f", "%H%M%S",
)  # fmt: skip
_JOINTS, _ZONES = (" ", "T", ", ", " - ", ":", "  "), ("", "%z", " %z", " %Z")
_OTHER_MOMENTS = ("%a %b %d %H:%M:%S %Y", "%a %b %d %H:%M:%S %Z %Y", "%Y%m%d%H%M%S", "%Y%m%dT%H%M%S", "%Y%m%dT%H%M%S%z",
                  "%Y%m%d %H:%M:%S", "%Y%m%d %H%M%S", "%Y%m%d %H:%M")  # fmt: skip
#: Months and quarters, which are read as their first day.
_PERIODS = (
    "%Y-%m", "%Y/%m", "%m/%Y", "%m-%Y", "%m.%Y", "%b %Y", "%B %Y", "%b-%Y", "%B-%Y", "%b. %Y", "%Y %b", "%Y-%b",
    "%Y %B", "%b-%y", "%YM%m", "%Ym%m", "%YQ%q", "%Yq%q", "%Y-Q%q", "%Y Q%q", "%Y/Q%q", "Q%q %Y", "Q%q-%Y", "Q%q/%Y",
)  # fmt: skip


@cache
def _pattern(date_format: str) -> re.Pattern[str]:
    return re.compile(written_pattern(date_format))


def parsed(text: str, date_format: str) -> dt.datetime | None:
    """A text in a format; None if it is written in another one, or has no such day."""
    if not _pattern(date_format).fullmatch(text):
        return None
    if QUARTER in date_format:  # which strptime does not have
        match = re.search(r"Q([1-4])", text, re.IGNORECASE)
        quarter = int(match[1]) if match else 1
        text = re.sub(r"(Q)[1-4]", rf"\g<1>{3 * quarter - 2}", text, flags=re.IGNORECASE)
        date_format = date_format.replace(QUARTER, "%m")
    if "%Z" in date_format:
        zone = re.search(r"\b(?:UTC|GMT)\b", text)
        if zone is None:
            return None
        text, date_format = text[: zone.start()] + text[zone.end() :], date_format.replace("%Z", "")
    if "%z" in date_format:
        text = re.sub(r"([+-][0-9]{2})$", r"\g<1>00", text)
    try:
        return dt.datetime.strptime(text, date_format).replace(tzinfo=None)
    except ValueError:
        return None


def date_formats(texts: Sequence[str], day_first: bool) -> tuple[str, ...] | None:
    """Formats that fit all texts, at most three; None if there are none."""
    formats: list[str] = []
    for text in texts:
        if any(parsed(text, date_format) for date_format in formats):
            continue
        fitting = next((f for f in _candidates(text, day_first)), None)
        if fitting is None or len(formats) == 3:
            return None
        formats.append(fitting)
    if (
        len(formats) > 1
    ):  # one that fits all: 01:02:03 may be of `%I:%M:%S` or of `%H:%M:%S`, May of `%b` or `%B`
        single = [f for f in _candidates(texts[0], day_first) if all(parsed(t, f) for t in texts)]
        formats = single[:1] or formats
    return tuple(formats)


def _candidates(text: str, day_first: bool) -> Iterable[str]:
    """Formats of a text, with the day before the month, or the month before the day, if both are numbers."""
    if not re.search(r"[0-9]", text) or len(text) > 60:
        return
    for date_format in _OTHER_MOMENTS:
        if parsed(text, date_format):
            yield date_format
    for date in _DATES:
        if day_precedes(date) not in (None, day_first):
            continue
        match = re.match(_prefix(date), text)
        if match is None:
            continue
        rest = text[match.end() :]
        if not rest:
            if parsed(text, date):
                yield date
            continue
        for joint in _JOINTS:
            if rest.startswith(joint):
                yield from (
                    f
                    for f in (date + joint + time + zone for time in _TIMES for zone in _ZONES)
                    if parsed(text, f)
                )
    yield from (date_format for date_format in _PERIODS if parsed(text, date_format))


@cache
def _prefix(date_format: str) -> re.Pattern[str]:
    return re.compile(written_pattern(date_format) + "(?![0-9])")


def day_precedes(date_format: str) -> bool | None:
    """Whether the day precedes the month; None if the format does not leave a choice."""
    match = re.search("%(d|m)(?:[./-]| )%(d|m)(?!.*%b)", date_format)
    if match is None or date_format.startswith("%Y"):
        return None
    return match[1] == "d"


def day_first(
    dated: Mapping[str, Mapping[bool, tuple[str, ...]]],
    values: Mapping[str, Sequence[str]],
    chosen: str | None,
    days: Sequence[str],
) -> dict[str, bool]:
    """For each column of dates, whether the day precedes the month.

    The values decide. Where both are possible: as was chosen, as in the columns where only one is, as the dates of the
    files say, or as is usual with the separator.
    """
    certain = {column: next(iter(orders)) for column, orders in dated.items() if len(orders) == 1}
    neutral = [c for c in certain if any(day_precedes(f) is None for f in dated[c][certain[c]])]
    known = {certain[c] for c in certain if c not in neutral}
    result = dict(certain)
    for column, orders in dated.items():
        if column in result:
            continue
        if orders[True] == orders[False]:
            result[column] = True
        elif chosen:
            result[column] = chosen == "day"
        elif len(known) == 1:
            result[column] = next(iter(known))
        elif (nearer := _nearer(orders, values[column], days)) is not None:
            result[column] = nearer
        else:
            result[column] = "/" not in orders[True][0].partition("%Y")[0]
    return result


def _nearer(orders: Mapping[bool, tuple[str, ...]], texts: Sequence[str], days: Sequence[str]) -> bool | None:
    """The order with which dates are nearer to those of the files, or to each other; None if it makes no difference."""
    if days:
        low, high = (dt.datetime.fromisoformat(day) for day in (min(days), max(days)))
        distances = {
            order: median(max((low - t).days, (t - high).days, 0) for t in moments(texts, formats))
            for order, formats in orders.items()
        }
        if distances[True] != distances[False] and min(distances.values()) <= 31:
            return distances[True] < distances[False]
    spans = {order: max(m) - min(m) for order, f in orders.items() if (m := moments(texts, f))}
    # A feed of some days in a row, read in the wrong order, is spread over months.
    if len(texts) >= 5 and 3 * min(spans.values()) < max(spans.values()):
        return spans[True] < spans[False]
    return None


def moments(texts: Sequence[str], formats: Sequence[str]) -> list[dt.datetime]:
    return [m for text in texts if (m := next((p for f in formats if (p := parsed(text, f))), None))]


def swapped(date_format: str) -> str:
    """A format with day and month exchanged; itself if the text tells them apart."""
    if day_precedes(date_format) is None:
        return date_format
    return date_format.replace("%d", "\0").replace("%m", "%d").replace("\0", "%m")
