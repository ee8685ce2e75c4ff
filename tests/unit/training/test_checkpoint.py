"""The checkpoint of a training: finished trials and unfinished boosters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import xgboost

from perennial.core import dates
from perennial.spec.model_spec import ModelSpec
from perennial.training import checkpoint as checkpoint_module
from perennial.training._boosting import boost
from perennial.training.checkpoint import Checkpoint, SearchTrial
from perennial.training.runs.training_inputs import PinnedData, TrainingRequest, make_checkpoints
from perennial.training.windows import candidate_windows
from support import toys
from support.training_rows import PARAMS, matrices


def test_trials_that_are_done_are_not_done_again(tmp_path: Path) -> None:
    uri = str(tmp_path / "checkpoint")
    Checkpoint(uri).add_trial(
        SearchTrial(0, {"max_depth": 3.0}, 0.5, 12, 4.0, ((1, 0.7, 0.8), (2, None, 0.6)))
    )
    stored = Checkpoint(uri)
    assert [t.seconds for t in stored.trials] == [4.0]
    assert (
        stored.find_trial(0, {"max_depth": 4.0}) is None and stored.find_trial(1, {"max_depth": 3.0}) is None
    )
    assert stored.find_trial(0, {"max_depth": 3.0}) == SearchTrial(
        0, {"max_depth": 3.0}, 0.5, 12, 4.0, ((1, 0.7, 0.8), (2, None, 0.6))
    )
    assert stored.resumed == 12
    stored.clear()
    assert Checkpoint(uri).find_trial(0, {"max_depth": 3.0}) is None
    stored.clear()


def test_a_booster_of_another_trial_is_left_alone(tmp_path: Path, every_round: None) -> None:
    train, _ = matrices()
    uri = str(tmp_path / "checkpoint")
    boost("trial 0", PARAMS, train, 4, Checkpoint(uri))
    assert Checkpoint(uri).load_booster("trial 1") == (None, [])
    raw, _ = Checkpoint(uri).load_booster("trial 0")
    assert raw and xgboost.Booster(model_file=raw).attributes() == {}


@pytest.mark.parametrize("position", [0, 30, 64, 65, 500, -1])
def test_a_damaged_checkpoint_is_not_continued(tmp_path: Path, every_round: None, position: int) -> None:
    train, _ = matrices()
    uri = str(tmp_path / "checkpoint")
    boost("trial 0", PARAMS, train, 4, Checkpoint(uri))
    Checkpoint(uri).add_trial(SearchTrial(1, {"max_depth": 3.0}, 0.5, 12, 4.0))
    for file in (tmp_path / "checkpoint").iterdir():
        content = bytearray(file.read_bytes())
        content[position if position < len(content) else -1] ^= 1
        file.write_bytes(content)
    assert Checkpoint(uri).load_booster("trial 0") == (None, [])
    assert Checkpoint(uri).find_trial(1, {"max_depth": 3.0}) is None


def test_boosters_side_by_side_are_each_saved(tmp_path: Path, every_round: None) -> None:
    train, _ = matrices()
    folder = tmp_path / "checkpoint"
    checkpoint = Checkpoint(str(folder))
    boost("trial 0", PARAMS, train, 4, checkpoint)
    boost("trial 1", PARAMS, train, 3, checkpoint)
    checkpoint.add_trial(SearchTrial(0, {}, 0.5, 4, 1.0))
    assert not Checkpoint(str(folder)).load_booster("trial 0")[0]  # it is done
    boost("last fit of trial 0", PARAMS, train, 3, checkpoint)
    stored = Checkpoint(str(folder))
    assert (
        stored.load_booster("trial 1")[0]
        and stored.load_booster("last fit of trial 0")[0]
        and stored.resumed == 6
    )
    assert not stored.load_booster("last fit of trial 1")[0]
    checkpoint.clear()
    assert not list(folder.iterdir())


def test_checkpoints_are_not_written_more_often_than_asked(tmp_path: Path) -> None:
    assert checkpoint_module.CHECKPOINT_SECONDS >= 30
    train, _ = matrices()
    boost("t", PARAMS, train, 4, Checkpoint(str(tmp_path / "checkpoint")))
    assert not (tmp_path / "checkpoint").exists()


def test_another_version_of_the_library_begins_anew(
    make_empty: Callable[..., ModelSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may encode the same rows differently, so it does not continue from the checkpoint."""
    spec = make_empty()
    request = TrainingRequest(toys.LAST, "", "test", "", 1, None, "")
    windows = candidate_windows(spec, toys.LAST, dates.dates(toys.FIRST, toys.LAST), "")
    pinned = PinnedData(1, 1, {}, windows, None, "", "", {"rows": "digest of the rows"})

    def uris() -> list[str | None]:
        return [checkpoint.uri for checkpoint in make_checkpoints(spec, request, pinned).values()]

    before = uris()
    assert uris() == before
    monkeypatch.setattr("perennial.core.runtime.library_digest", lambda: "another")
    assert not set(uris()) & set(before)
