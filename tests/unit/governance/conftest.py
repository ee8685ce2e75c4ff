"""The fixtures of `support.small_model`."""

from __future__ import annotations

from support.small_model import make_rows, small_model

__all__ = ["make_rows", "small_model"]
