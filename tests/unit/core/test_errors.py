"""Errors name model, partition, cause and remedy."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from perennial.cli import app
from perennial.core import errors
from perennial.core.errors import DataError, PerennialError
from perennial.steps import result_file


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


def kinds_of(base: type[PerennialError]) -> set[type[PerennialError]]:
    return {base}.union(*(kinds_of(kind) for kind in base.__subclasses__()))


def test_every_error_is_sorted_by_whether_time_heals_it() -> None:
    kinds = {kind for kind in kinds_of(PerennialError) if kind.__module__ == errors.__name__}
    assert set(errors.TIME_HEALS) == kinds

    class OfAnotherModuleError(errors.RegistryError):
        pass

    assert errors.time_heals(OfAnotherModuleError("x", "y"))
    assert {kind.__name__ for kind, heals in errors.TIME_HEALS.items() if heals} == {
        "DataNotReadyError",
        "DataReplacedError",
        "DatabaseError",
        "LockHeldError",
        "OutOfMemoryError",
        "RegistryError",
        "StepInterruptedError",
        "StorageError",
        "UnexpectedError",
    }


@pytest.mark.parametrize("kind", errors.TIME_HEALS, ids=lambda kind: kind.__name__)
def test_the_command_line_and_the_file_of_a_pod_pass_on_whether_time_heals(
    kind: type[PerennialError],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise kind("the cause", "the remedy", model="toy")

    monkeypatch.setattr(app, "app", fail)
    with pytest.raises(SystemExit) as end:
        app.main()
    assert end.value.code == (75 if errors.TIME_HEALS[kind] else 1)
    assert "the cause" in capsys.readouterr().err
    file = str(tmp_path / "result.json")
    with pytest.raises(kind), result_file.step_outcome(file):
        fail()
    with pytest.raises(PerennialError) as read:
        result_file.read_result(file)
    assert type(read.value) is kind
    assert errors.time_heals(read.value) is errors.TIME_HEALS[kind]


def test_an_error_that_is_none_of_ours_is_not_said_to_heal() -> None:
    assert not errors.time_heals(ValueError("?"))
