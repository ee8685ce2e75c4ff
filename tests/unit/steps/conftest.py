"""The fixtures of `support.small_model` and `support.monitored`."""

from __future__ import annotations

from support.monitored import calm, make_world, monitored
from support.small_model import make_rows, small_model

__all__ = ["calm", "make_rows", "make_world", "monitored", "small_model"]
