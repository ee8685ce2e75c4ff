"""Steps by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial import steps
from perennial.core.errors import PerennialError
from perennial.steps import dispatch
from support import toys


def test_unknown_steps_and_arguments_are_refused(empty_home: Path, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    with pytest.raises(PerennialError, match=r"no step 'fly'(.|\n)*data, train, promote, score, monitor"):
        dispatch.run("fly", spec)
    with pytest.raises(PerennialError, match=r"step score: .*'stop'(.|\n)*its arguments are: start, end"):
        dispatch.run("score", spec, start="2024-01-01", stop="2024-01-02")
    with pytest.raises(PerennialError, match="missing a required argument: 'as_of'"):
        dispatch.run("train", spec)


@pytest.mark.parametrize("name", ["data", "train", "promote", "score", "monitor", "decide", "conclude"])
def test_a_mistyped_year_is_refused_by_every_step(empty_home: Path, tmp_path: Path, name: str) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    arguments: dict[str, object] = {"start": "2024-01-01", "end": "2999-01-01"}
    if "end" not in dispatch.parameter_names(name):
        arguments = {"as_of": "2999-01-01", "actor": "ann", "backfill": False}
        arguments = {key: value for key, value in arguments.items() if key in dispatch.parameter_names(name)}
    with pytest.raises(PerennialError, match=r"2999-01-01 is in the future(.|\n)*check the year"):
        dispatch.run(name, spec, **arguments)


@pytest.mark.parametrize("step", dispatch.STEPS)
def test_every_step_is_the_function_of_its_name_in_the_module_of_its_name(step: str) -> None:
    function = dispatch.load_step(step)
    assert (function.__module__, function.__name__) == (f"perennial.steps.{step}", step)
    assert dispatch.parameter_names(step)
    assert step in steps.__all__


def test_a_step_names_its_arguments() -> None:
    assert dispatch.parameter_names("promote") == ["as_of", "actor", "reason"]
    assert dispatch.parameter_names("rollback") == ["actor", "reason", "to_version", "run_id"]


@pytest.mark.parametrize("name", ["data", "train", "score"])
def test_text_that_is_no_date_is_refused_by_every_step(empty_home: Path, tmp_path: Path, name: str) -> None:
    spec = toys.model(tmp_path / "models", "toy")
    with pytest.raises(PerennialError) as error:
        dispatch.run(name, spec, **{"as_of" if name == "train" else "start": "../../etc"})
    assert error.value.remedy
