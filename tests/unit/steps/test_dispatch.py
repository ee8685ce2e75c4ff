"""Steps by name, and errors that name model, partition, cause and remedy."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from perennial.core import errors
from perennial.core.errors import DataError, PerennialError
from perennial.steps import dispatch
from support import toys


def test_unknown_steps_and_arguments_are_told(house: Path, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    with pytest.raises(PerennialError, match=r"no step 'fly'(.|\n)*data, train, promote, score, monitor"):
        dispatch.run("fly", spec)
    with pytest.raises(PerennialError, match=r"step score: .*'stop'(.|\n)*it takes: start, end"):
        dispatch.run("score", spec, start="2024-01-01", stop="2024-01-02")
    with pytest.raises(PerennialError, match="missing a required argument: 'as_of'"):
        dispatch.run("train", spec)


def test_every_step_can_be_imported_and_says_what_it_takes() -> None:
    assert dispatch.takes("promote") == ["as_of", "actor", "reason"]
    assert dispatch.takes("rollback") == ["actor", "reason", "to_version"]
    for name in dispatch.STEPS:
        assert dispatch.takes(name)


@pytest.mark.parametrize("name", ["data", "train", "score"])
def test_a_date_that_is_none_is_refused_by_every_step(house: Path, tmp_path: Path, name: str) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    with pytest.raises(PerennialError) as error:
        dispatch.run(name, spec, **{"as_of" if name == "train" else "start": "../../etc"})
    assert error.value.remedy


def test_an_error_says_all_of_it_and_survives_a_copy() -> None:
    error = DataError("the file is empty", "land it again", model="toy", partition="2024-01-01")
    assert str(error) == "model toy, partition 2024-01-01: the file is empty\n  What to do: land it again"
    again = copy.copy(error)
    assert type(again) is DataError
    assert str(again) == str(error)
    assert str(PerennialError("x", "y")) == "x\n  What to do: y"


def test_every_error_is_ours() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, Exception)]
    assert len(kinds) > 5
    assert all(issubclass(k, PerennialError) for k in kinds)
