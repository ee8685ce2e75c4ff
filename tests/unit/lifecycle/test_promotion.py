"""Promotion and rollback: the champion changes only through the gate, under a lock, and after a check."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from perennial.core import dates
from perennial.core.errors import (
    ArtifactError,
    DataError,
    PerennialError,
    RegistryError,
    RegistryRequestError,
    time_heals,
)
from perennial.core.settings import settings
from perennial.lifecycle import champion as champion_module
from perennial.lifecycle import promotion, verification
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps import dispatch
from perennial.steps.promote import promote
from perennial.steps.rollback import rollback
from perennial.steps.train import train
from perennial.storage import ledger, manifests
from perennial.storage.ledger import LedgerKind
from perennial.training import challenger_evaluation
from support import processes, toys

Make = Callable[..., ModelSpec]
EARLY, LATE = dates.add_days(toys.LAST, -1), toys.LAST


@dataclass(frozen=True)
class Trained:
    """A model that was trained for several tests, each of which begins with a copy of its lake and with its aliases.

    Attributes:
        spec: the model.
        home: the working folder after the trainings.
        champion: result of the training before the last one, which was promoted.
        challenger: result of the last training, which waits.
    """

    spec: ModelSpec
    home: Path
    champion: dict[str, Any] | None
    challenger: dict[str, Any]

    def copy_to(self, home: Path) -> None:
        shutil.rmtree(home)
        shutil.copytree(self.home, home)
        current = registry.get_champion(self.spec)
        if self.champion is not None:
            registry.set_alias(self.spec.name, self.champion["version"], "champion")
        elif current is not None:
            registry.remove_alias(self.spec.name, current.version, "champion")
        registry.set_alias(self.spec.name, self.challenger["version"], "challenger")
        toys.forget_anchor(self.spec.name)


def train_once(folder: Path, mlflow_url: str, *, after_champion: bool) -> Trained:
    with toys.working_folder(folder, mlflow_url) as patch:
        toys.let_all_pass(patch)
        spec = toys.model(folder / "models", toys.unique(), training={"rounds": 3})
        toys.publish(spec)
        first = None
        if after_champion:
            first = train(spec, as_of=EARLY)
            promote(spec, as_of=EARLY, actor="test")
        return Trained(spec, folder / "home", first, train(spec, as_of=LATE))


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory, mlflow_url: str) -> Trained:
    return train_once(tmp_path_factory.mktemp("once"), mlflow_url, after_champion=False)


@pytest.fixture(scope="module")
def trained_twice(tmp_path_factory: pytest.TempPathFactory, mlflow_url: str) -> Trained:
    return train_once(tmp_path_factory.mktemp("twice"), mlflow_url, after_champion=True)


@pytest.fixture
def one_challenger(trained_once: Trained, mlflow_home: Path) -> tuple[ModelSpec, dict[str, Any]]:
    """A model without a champion, and the training of its challenger. Tests train no other, and damage nothing."""
    trained_once.copy_to(mlflow_home)
    return trained_once.spec, trained_once.challenger


@pytest.fixture
def next_challenger(
    trained_twice: Trained, mlflow_home: Path
) -> tuple[ModelSpec, dict[str, Any] | None, dict[str, Any]]:
    """A model, and the trainings of its champion and its challenger. Tests train no other, and damage nothing."""
    trained_twice.copy_to(mlflow_home)
    return trained_twice.spec, trained_twice.champion, trained_twice.challenger


@pytest.fixture
def two_champions(next_challenger: Any) -> Any:
    """As `next_challenger`, which was promoted."""
    spec, one, two = next_challenger
    promote(spec, as_of=LATE, actor="test")
    assert one["digest"] != two["digest"]
    return next_challenger


@pytest.fixture
def own_champions(passing: ModelSpec) -> Any:
    """As `two_champions`, of a model that the test alone uses."""
    one = train(passing, as_of=EARLY)
    promote(passing, as_of=EARLY, actor="test")
    two = train(passing, as_of=LATE)
    promote(passing, as_of=LATE, actor="test")
    return passing, one, two


def champion(spec: ModelSpec) -> str | None:
    version = registry.get_champion(spec)
    return version.version if version else None


def decisions(spec: ModelSpec) -> list[tuple[str, str, str]]:
    ledger.verify(spec.name)
    return [
        (r["kind"], r["decision"], r["model_version"])
        for r in ledger.records(spec.name)
        if r["kind"] != "training"
    ]


def test_a_worse_challenger_is_refused_and_a_better_one_passes(make_model: Make) -> None:
    """Labels shuffled among the rows make a bad model; champion and challenger are judged on the same true days."""
    spec = make_model()
    learn, judge = 14, 5
    toys.publish(spec, days=learn, shuffled=True)
    toys.publish(spec, dates.add_days(toys.FIRST, learn), judge + 1)
    bad = train(spec, as_of=LATE)
    assert not bad["gate"]["passed"]  # no better than a constant
    assert promote(spec, as_of=LATE, actor="test")["promoted"] is False
    assert champion(spec) is None

    toys.publish(spec)
    good = train(spec, as_of=LATE)
    assert good["gate"]["passed"], good["gate"]["reasons"]
    assert promote(spec, as_of=LATE, actor="test")["promoted"] is True

    toys.publish(spec, days=learn, shuffled=True)
    worse = train(spec, as_of=LATE)
    assert not worse["gate"]["passed"]
    against = worse["gate"]["against_champion"]
    assert against["rows"] == judge * toys.ROWS
    assert against["improvement"] < 0
    assert against["other"] == pytest.approx(
        good["metrics"]["log_loss"], abs=1e-6
    )  # the same rows, the same loss
    answer = promote(spec, as_of=LATE, actor="test")
    assert answer["promoted"] is False
    assert "champion" in answer["reason"]
    assert champion(spec) == good["version"]
    assert [r["decision"] for r in ledger.records(spec.name, LedgerKind.TRAINING)] == [
        "rejected",
        "accepted",
        "rejected",
    ]


def test_a_better_challenger_takes_the_place_of_a_weak_champion(make_model: Make) -> None:
    spec = make_model(gate={"beat_baseline": False})
    toys.publish(spec, days=14, shuffled=True)
    toys.publish(spec, dates.add_days(toys.FIRST, 14), 6)
    weak = train(spec, as_of=LATE)
    assert promote(spec, as_of=LATE, actor="test")["promoted"]
    toys.publish(spec)
    strong = train(spec, as_of=LATE)
    assert strong["gate"]["against_champion"]["low"] > 0
    answer = promote(spec, as_of=LATE, actor="operator", reason="requested")
    assert answer == {
        "promoted": True,
        "version": strong["version"],
        "previous": weak["version"],
        "reason": answer["reason"],
    }
    last = ledger.records(spec.name)[-1]
    assert (last["actor"], last["partition"], last["model_version"]) == ("gate", LATE, strong["version"])
    assert last["evidence"]["triggered_by"] == "operator"
    assert last["evidence"]["previous"] == weak["version"]
    assert last["evidence"]["digest"] == strong["digest"]
    assert last["evidence"]["request_reason"] == "requested"


def test_a_promotion_is_recorded_once(one_challenger: Any) -> None:
    spec, result = one_challenger
    for _ in range(3):
        assert promote(spec, as_of=LATE, actor="test")["promoted"] is True
    assert decisions(spec) == [("promotion", "promoted", result["version"])]


def test_many_promotions_at_once_are_one(one_challenger: Any) -> None:
    spec, result = one_challenger
    runs = [
        processes.start(processes.step, str(spec.folder), "promote", {"as_of": LATE, "actor": str(n)})
        for n in range(4)
    ]
    assert processes.wait(*runs) == [0] * 4
    assert decisions(spec) == [("promotion", "promoted", result["version"])]


def test_a_champion_that_moved_meanwhile_is_not_overwritten(passing: ModelSpec) -> None:
    """Two challengers of no champion: the second was never compared with the first."""
    one, two = train(passing, as_of=EARLY), train(passing, as_of=LATE)
    assert promote(passing, as_of=EARLY, actor="test")["promoted"]
    answer = promote(passing, as_of=LATE, actor="test")
    assert answer["promoted"] is False
    assert f"the champion is now {one['version']}," in answer["reason"]
    assert champion(passing) == one["version"]
    # what the message asks for works, without force
    again = train(passing, as_of=LATE)
    assert again["status"] == "trained"
    assert again["gate"]["champion"] == one["version"]
    assert promote(passing, as_of=LATE, actor="test")["version"] == again["version"] != two["version"]
    assert champion(passing) == again["version"]


def test_what_was_promoted_stays_unchanged_when_its_training_reruns(two_champions: Any) -> None:
    spec, _, _ = two_champions
    assert train(spec, as_of=EARLY)["status"] == "unchanged"
    assert train(spec, as_of=LATE)["status"] == "unchanged"


def test_a_challenger_is_judged_again_by_another_champion_and_trained_again_if_it_is_lost(
    passing: ModelSpec, mlflow_url: str
) -> None:
    train(passing, as_of=EARLY)
    promote(passing, as_of=EARLY, actor="test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(challenger_evaluation, "gate_decision", lambda *_: (False, ["worse than the champion"]))
        rejected = train(passing, as_of=LATE)
        assert train(passing, as_of=LATE)["status"] == "unchanged"
    other = train(passing, as_of=EARLY, force=True)
    assert promote(passing, as_of=EARLY, actor="test")["promoted"]
    again = train(passing, as_of=LATE)
    assert (again["status"], again["gate"]["champion"]) == ("trained", other["version"])
    assert again["version"] != rejected["version"]
    assert train(passing, as_of=LATE)["status"] == "unchanged"
    MlflowClient(mlflow_url).delete_model_version(passing.name, again["version"])
    assert train(passing, as_of=LATE)["status"] == "trained"
    assert promote(passing, as_of=LATE, actor="test")["promoted"]


def test_an_old_promotion_run_again_does_not_undo_a_rollback(two_champions: Any) -> None:
    spec, one, _ = two_champions
    rollback(spec, actor="operator", reason="it predicts nonsense")
    answer = promote(spec, as_of=LATE, actor="test")
    assert answer["promoted"] is False
    assert "was replaced" in answer["reason"]
    assert champion(spec) == one["version"]


def test_without_a_training_there_is_nothing_to_promote(make_model: Make) -> None:
    with pytest.raises(DataError, match="no finished training") as error:
        promote(make_model(), as_of=LATE, actor="test")
    assert error.value.partition == LATE
    with pytest.raises(PerennialError, match="not a date"):
        promote(make_model(), as_of="../train/2024-01-20", actor="test")


def test_a_challenger_that_somebody_made_champion_is_reported_before_it_is_promoted(
    next_challenger: Any,
) -> None:
    """It passed its gate, so promotion may have it; but no promotion was killed here, and none is made up."""
    spec, one, two = next_challenger
    registry.set_alias(spec.name, two["version"], "champion")
    for _ in range(2):
        answer = promote(spec, as_of=LATE, actor="test")
        assert (answer["promoted"], answer["previous"]) == (True, one["version"])
    assert decisions(spec)[1:] == [
        ("external change", "reported", two["version"]),
        ("promotion", "promoted", two["version"]),
    ]


@contextmanager
def killed_before_the_record() -> Iterator[None]:
    """What runs in the block dies when it comes to write into the ledger."""

    class Killed(BaseException):
        pass

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(promotion.ledger, "append", killed)
        yield


def test_a_promotion_killed_before_its_record_is_not_reported_as_an_external_change(
    next_challenger: Any,
) -> None:
    spec, one, two = next_challenger
    with killed_before_the_record():
        promote(spec, as_of=LATE, actor="test")
    assert champion(spec) == two["version"]
    done = rollback(spec, actor="operator", reason="bad")
    assert (done["version"], done["previous"]) == (one["version"], two["version"])
    assert decisions(spec) == [
        ("promotion", "promoted", one["version"]),
        ("promotion", "promoted", two["version"]),
        ("rollback", "rolled back", one["version"]),
    ]
    # what was begun then says nothing about a move by hand now
    registry.set_alias(spec.name, two["version"], "champion")
    assert "was champion before and was replaced" in promote(spec, as_of=LATE, actor="test")["reason"]
    assert decisions(spec)[3:] == [("external change", "reported", two["version"])]


def test_a_move_by_hand_to_the_version_before_is_no_killed_rollback(two_champions: Any) -> None:
    spec, one, two = two_champions
    registry.set_alias(spec.name, one["version"], "champion")
    assert rollback(spec, actor="operator", reason="not by us")["version"] == two["version"]
    assert decisions(spec)[2:] == [
        ("external change", "reported", one["version"]),
        ("rollback", "rolled back", two["version"]),
    ]


def test_rollback_gives_the_champion_before_back(two_champions: Any) -> None:
    spec, one, two = two_champions
    with pytest.raises(DataError, match="needs a reason"):
        rollback(spec, actor="operator", reason="  ")
    done = rollback(spec, actor="operator", reason="bad", run_id="manual__1")
    assert (done["version"], done["previous"], done["scored"]) == (one["version"], two["version"], [])
    assert champion(spec) == one["version"]
    last = ledger.records(spec.name)[-1]
    assert (last["decision"], last["reason"], last["actor"]) == ("rolled back", "bad", "operator")
    assert last["evidence"]["airflow_run"] == "manual__1" and last["evidence"]["repeated_rows"] == 0
    with pytest.raises(RegistryError, match="is the champion already") as error:
        rollback(spec, actor="operator", reason="worse", to_version=one["version"])
    assert error.value.remedy.startswith("name another version with to_version")
    with pytest.raises(RegistryError, match="there is no version first"):
        rollback(spec, actor="operator", reason="worse", to_version="first")
    with pytest.raises(RegistryError, match="no version was champion before version"):
        rollback(spec, actor="operator", reason="worse")
    assert (
        rollback(spec, actor="operator", reason="sorry", to_version=two["version"])["version"]
        == two["version"]
    )
    with pytest.raises(RegistryError, match="there is no version 99"):
        rollback(spec, actor="operator", reason="x", to_version="99")
    assert champion(spec) == two["version"]


def test_what_cannot_be_rolled_back_to_is_not_tried_again(own_champions: Any, mlflow_url: str) -> None:
    spec, one, two = own_champions
    before = decisions(spec)
    MlflowClient(mlflow_url).delete_model_version(spec.name, one["version"])
    for version, message in (
        (None, "there is no version"),  # the champion before, which was deleted
        (one["version"], "there is no version"),
        (two["version"], "is the champion already"),
        ("99", "there is no version 99"),
        ("first", "there is no version first"),
        (f"0{two['version']}", "there is no version 0"),
        ("²", "there is no version ²"),
        ("-1", "there is no version -1"),
    ):
        with pytest.raises(RegistryRequestError, match=message) as error:
            dispatch.run("rollback", spec, actor="operator", reason="bad nights", to_version=version)
        assert not time_heals(error.value)
    with pytest.raises(DataError, match="needs a reason") as no_reason:
        dispatch.run("rollback", spec, actor="operator", reason="  ", to_version=two["version"])
    assert not time_heals(no_reason.value)
    assert decisions(spec) == before and champion(spec) == two["version"]


def test_rollback_refuses_an_artifact_with_one_flipped_byte(
    own_champions: Any, artifact: Callable[[ModelSpec, str], Path]
) -> None:
    spec, one, two = own_champions
    stored = artifact(spec, one["version"])
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    stored.write_bytes(content)  # a good copy in this machine's cache does not hide it
    before = decisions(spec)
    with pytest.raises(ArtifactError, match="changed or damaged"):
        rollback(spec, actor="operator", reason="bad")
    assert champion(spec) == two["version"]
    assert decisions(spec) == before


def test_rollback_from_a_foreign_champion_returns_to_the_ledgers(own_champions: Any) -> None:
    spec, _, two = own_champions
    three = train(spec, as_of=LATE, force=True)
    registry.set_alias(spec.name, three["version"], "champion")
    assert rollback(spec, actor="operator", reason="not ours")["version"] == two["version"]
    assert [d[1] for d in decisions(spec)][-2:] == ["reported", "rolled back"]


@pytest.mark.parametrize("read_meanwhile", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_a_rollback_killed_before_its_record_is_completed(
    two_champions: Any, named: bool, read_meanwhile: bool
) -> None:
    spec, one, two = two_champions
    to = one["version"] if named else None
    with killed_before_the_record():
        rollback(spec, actor="operator", reason="bad", to_version=to)
    assert champion(spec) == one["version"]
    if read_meanwhile:
        champion_module.get_champion(spec, partition=LATE, actor="test")
    done = rollback(spec, actor="operator", reason="bad", to_version=to)
    assert (done["version"], done["previous"]) == (one["version"], two["version"])
    assert decisions(spec)[-1] == ("rollback", "rolled back", one["version"])
    assert len(decisions(spec)) == 3
    with pytest.raises(RegistryError, match="no version was champion before version"):
        rollback(spec, actor="operator", reason="still bad")


@pytest.mark.parametrize("finish", ["verify", "score", "promote"])
def test_a_promotion_killed_before_its_record_is_finished_by_what_reads_the_champion(
    one_challenger: Any, finish: str
) -> None:
    spec, result = one_challenger
    with killed_before_the_record():
        promote(spec, as_of=LATE, actor="ann", reason="drift")
    assert champion(spec) == result["version"] and decisions(spec) == []
    for _ in range(2):
        if finish == "verify":
            assert verification.verify_model(spec, actor="test")["findings"] == []
        elif finish == "score":
            serving = champion_module.get_serving_champion(spec, partition=LATE, actor="scoring")
            assert serving is not None and serving.version == result["version"]
        else:
            assert promote(spec, as_of=LATE, actor="test")["promoted"] is True
    assert decisions(spec) == [("promotion", "promoted", result["version"])]
    record = ledger.records(spec.name, LedgerKind.PROMOTION)[0]
    assert (record["evidence"]["triggered_by"], record["partition"]) == ("ann", LATE)
    assert record["evidence"]["request_reason"] == "drift" and record["evidence"]["interrupted"] is True
    assert champion_module.read_state(spec).deviation == ""


def test_the_alias_challenger_is_on_what_may_become_champion_and_on_nothing_else(passing: ModelSpec) -> None:
    def challenger() -> str | None:
        version = registry.get_version_by_alias(passing.name, "challenger")
        return version.version if version else None

    one = train(passing, as_of=EARLY)
    assert challenger() == one["version"]
    promote(passing, as_of=EARLY, actor="test")
    assert challenger() is None, "it was promoted"
    registry.set_alias(passing.name, one["version"], "challenger")  # as earlier releases left it
    promote(passing, as_of=EARLY, actor="test")
    assert challenger() is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(challenger_evaluation, "gate_decision", lambda *_: (False, ["worse"]))
        train(passing, as_of=LATE)
    assert challenger() is None, "it did not pass the gate"
    two = train(passing, as_of=LATE, force=True)
    assert challenger() == two["version"]
    rollback(passing, actor="operator", reason="adopt", to_version=two["version"])
    assert challenger() is None, "it is champion by a rollback"
    three = train(passing, as_of=LATE, force=True)
    rollback(passing, actor="operator", reason="back", to_version=one["version"])
    assert challenger() == three["version"], "it waits"
    assert promote(passing, as_of=LATE, actor="test")["promoted"] is False
    assert challenger() is None, "it was refused: the champion has changed"


def test_a_light_step_imports_nothing_heavy(one_challenger: Any) -> None:
    import subprocess
    import sys

    spec, _ = one_challenger
    code = (
        "import sys, pathlib; from perennial.steps import dispatch; from perennial.spec.catalog import load_model; "
        f"dispatch.run('promote', load_model(pathlib.Path({str(spec.folder)!r})), as_of={LATE!r}, actor='test'); "
        "print([m for m in ('mlflow', 'xgboost', 'sklearn', 'scipy', 'optuna', 'airflow') if m in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert process.stdout.strip() == "[]"
    assert manifests.read(spec.name, "train", LATE) is not None
    assert settings().mlflow_uri.startswith("http://127.0.0.1:")
