"""The fixtures of `support.monitored`: a small model's world that the tests can bend."""

from __future__ import annotations

from support.monitored import calm, make_world, world

__all__ = ["calm", "make_world", "world"]
