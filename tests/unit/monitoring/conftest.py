"""The fixtures of `support.monitored`: a small model with its lake."""

from __future__ import annotations

from support.monitored import calm, make_world, monitored

__all__ = ["calm", "make_world", "monitored"]
