"""Errors name model, partition, cause and remedy."""

from __future__ import annotations

import copy

from perennial.core import errors
from perennial.core.errors import DataError, PerennialError


def test_an_error_has_all_parts_and_survives_a_copy() -> None:
    error = DataError("the file is empty", "land it again", model="toy", partition="2024-01-01")
    assert str(error) == "model toy, partition 2024-01-01: the file is empty\n  What to do: land it again"
    again = copy.copy(error)
    assert type(again) is DataError
    assert str(again) == str(error)
    assert str(PerennialError("x", "y")) == "x\n  What to do: y"


def test_every_error_is_a_perennial_error() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, Exception)]
    assert len(kinds) > 5
    assert all(issubclass(k, PerennialError) for k in kinds)
