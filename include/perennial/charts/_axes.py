"""Positions on axes, and the values at which they have ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from functools import lru_cache

from perennial.core.errors import PerennialError
from perennial.core.partitions import nominal_start

#: Share of an axis that stays free above the largest and below the smallest value.
_PADDING = 0.08


@dataclass(frozen=True)
class Scale:
    """A linear map from values to coordinates.

    Attributes:
        low: value at ``start``.
        high: value at ``end``.
        start: a coordinate.
        end: a coordinate.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The coordinate of a value; the middle if the axis has only one value."""
        if self.high == self.low:
            return (self.start + self.end) / 2
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@lru_cache(maxsize=8192)  # each chart of a page asks for the same partitions several times
def position(x: str | float) -> float:
    """The place of an x value on its axis: the start of a partition in seconds, or the number itself."""
    if not isinstance(x, str):
        return float(x)
    try:
        return nominal_start(x).replace(tzinfo=UTC).timestamp()
    except PerennialError:
        return math.nan


def value_range(values: Sequence[float]) -> tuple[float, float]:
    """The range of a value axis: all values, some space, and zero if it is near."""
    low, high = min(values), max(values)
    if low == high:
        space = abs(low) * 0.1 or 1.0
        return low - space, high + space
    space = (high - low) * _PADDING
    bottom = 0.0 if 0 <= low <= (high - low) else low - space
    top = 0.0 if (low - high) <= high <= 0 else high + space
    return bottom, top


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round values between two bounds."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def evenly(values: Sequence[str | float], count: int) -> list[str | float]:
    """At most ``count`` of the values, the first and the last included, evenly spaced."""
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]
