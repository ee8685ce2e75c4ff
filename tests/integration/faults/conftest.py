"""The fixtures of `support.small_model`: a model, its landing area, and its lake."""

from __future__ import annotations

from support.small_model import make_rows, small_model

__all__ = ["make_rows", "small_model"]
