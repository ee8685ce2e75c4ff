"""Promotion and rollback: the champion changes only through the gate, under a lock, and after a check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from perennial.core import dates
from perennial.core.errors import ArtifactError, DataError, PerennialError, RegistryError
from perennial.core.settings import settings
from perennial.lifecycle import promotion
from perennial.modeling import registry
from perennial.spec.model_spec import ModelSpec
from perennial.steps.promote import promote
from perennial.steps.rollback import rollback
from perennial.steps.train import train
from perennial.storage import ledger, manifests
from perennial.storage.ledger import LedgerKind
from support import processes, toys

Make = Callable[..., ModelSpec]
EARLY, LATE = dates.add_days(toys.LAST, -1), toys.LAST


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
    assert (last["actor"], last["partition"], last["model_version"]) == ("operator", LATE, strong["version"])
    assert last["evidence"]["previous"] == weak["version"]
    assert last["evidence"]["digest"] == strong["digest"]
    assert last["evidence"]["request_reason"] == "requested"


def test_a_promotion_is_recorded_once(passing: ModelSpec) -> None:
    result = train(passing, as_of=LATE)
    for _ in range(3):
        assert promote(passing, as_of=LATE, actor="test")["promoted"] is True
    assert decisions(passing) == [("promotion", "promoted", result["version"])]


def test_many_promotions_at_once_are_one(passing: ModelSpec) -> None:
    result = train(passing, as_of=LATE)
    runs = [
        processes.start(processes.step, str(passing.folder), "promote", {"as_of": LATE, "actor": str(n)})
        for n in range(4)
    ]
    assert processes.wait(*runs) == [0] * 4
    assert decisions(passing) == [("promotion", "promoted", result["version"])]


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


def test_what_was_promoted_stays_unchanged_when_its_training_reruns(passing: ModelSpec) -> None:
    train(passing, as_of=EARLY)
    promote(passing, as_of=EARLY, actor="test")
    train(passing, as_of=LATE)
    promote(passing, as_of=LATE, actor="test")
    assert train(passing, as_of=EARLY)["status"] == "unchanged"
    assert train(passing, as_of=LATE)["status"] == "unchanged"


def test_an_old_promotion_run_again_does_not_undo_a_rollback(passing: ModelSpec) -> None:
    one = train(passing, as_of=EARLY)
    promote(passing, as_of=EARLY, actor="test")
    train(passing, as_of=LATE)
    promote(passing, as_of=LATE, actor="test")
    rollback(passing, actor="operator", reason="it predicts nonsense")
    answer = promote(passing, as_of=LATE, actor="test")
    assert answer["promoted"] is False
    assert "was replaced" in answer["reason"]
    assert champion(passing) == one["version"]


def test_without_a_training_there_is_nothing_to_promote(make_model: Make) -> None:
    with pytest.raises(DataError, match="no finished training") as error:
        promote(make_model(), as_of=LATE, actor="test")
    assert error.value.partition == LATE
    with pytest.raises(PerennialError, match="not a date"):
        promote(make_model(), as_of="../train/2024-01-20", actor="test")


def test_a_champion_moved_from_outside_is_reported_once(passing: ModelSpec) -> None:
    one, two = train(passing, as_of=EARLY), train(passing, as_of=EARLY, force=True)
    promote(passing, as_of=EARLY, actor="test")
    three = train(passing, as_of=LATE)
    registry.set_alias(passing.name, one["version"], "champion")
    for _ in range(2):
        answer = promote(passing, as_of=LATE, actor="test")
        assert answer["promoted"] is False
    assert decisions(passing) == [
        ("promotion", "promoted", two["version"]),
        ("external change", "reported", one["version"]),
    ]
    assert three["gate"]["champion"] == two["version"]
    # back to what the ledger knows, and away again: that is another move, and another report
    registry.set_alias(passing.name, two["version"], "champion")
    assert promote(passing, as_of=LATE, actor="test")["promoted"]
    registry.set_alias(passing.name, one["version"], "champion")
    promote(passing, as_of=LATE, actor="test")
    assert [d for d in decisions(passing) if d[0] == "external change"] == [
        ("external change", "reported", one["version"])
    ] * 2


def test_a_refused_challenger_that_somebody_made_champion_is_reported(
    make_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perennial.training import challenger_evaluation

    monkeypatch.setattr(challenger_evaluation, "gate_decision", lambda *_: (False, ["no"]))
    spec = make_model(training={"rounds": 3})
    toys.publish(spec)
    result = train(spec, as_of=LATE)
    registry.set_alias(spec.name, result["version"], "champion")
    assert promote(spec, as_of=LATE, actor="test")["promoted"] is False
    assert decisions(spec) == [("external change", "reported", result["version"])]


def test_a_challenger_that_somebody_made_champion_is_reported_before_it_is_promoted(
    passing: ModelSpec,
) -> None:
    """It passed its gate, so promotion may have it; but no promotion was killed here, and none is made up."""
    one = train(passing, as_of=EARLY)
    promote(passing, as_of=EARLY, actor="test")
    two = train(passing, as_of=LATE)
    registry.set_alias(passing.name, two["version"], "champion")
    for _ in range(2):
        answer = promote(passing, as_of=LATE, actor="test")
        assert (answer["promoted"], answer["previous"]) == (True, one["version"])
    assert decisions(passing)[1:] == [
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
    passing: ModelSpec,
) -> None:
    one = train(passing, as_of=EARLY)
    promote(passing, as_of=EARLY, actor="test")
    two = train(passing, as_of=LATE)
    with killed_before_the_record():
        promote(passing, as_of=LATE, actor="test")
    assert champion(passing) == two["version"]
    assert rollback(passing, actor="operator", reason="bad") == {
        "version": one["version"], "previous": two["version"],
    }  # fmt: skip
    assert [d[1] for d in decisions(passing)] == ["promoted", "rolled back"]
    # what was begun then says nothing about a move by hand now
    registry.set_alias(passing.name, two["version"], "champion")
    promote(passing, as_of=LATE, actor="test")
    assert decisions(passing)[2:4] == [
        ("external change", "reported", two["version"]),
        ("promotion", "promoted", two["version"]),
    ]


def test_a_move_by_hand_to_the_version_before_is_no_killed_rollback(two_champions: Any) -> None:
    spec, one, two = two_champions
    registry.set_alias(spec.name, one["version"], "champion")
    assert rollback(spec, actor="operator", reason="not by us")["version"] == two["version"]
    assert decisions(spec)[2:] == [
        ("external change", "reported", one["version"]),
        ("rollback", "rolled back", two["version"]),
    ]


@pytest.fixture
def two_champions(passing: ModelSpec) -> tuple[ModelSpec, dict[str, Any], dict[str, Any]]:
    one = train(passing, as_of=EARLY)
    promote(passing, as_of=EARLY, actor="test")
    two = train(passing, as_of=LATE)
    promote(passing, as_of=LATE, actor="test")
    assert one["digest"] != two["digest"]
    return passing, one, two


def test_rollback_gives_the_champion_before_back(two_champions: Any) -> None:
    spec, one, two = two_champions
    with pytest.raises(DataError, match="needs a reason"):
        rollback(spec, actor="operator", reason="  ")
    assert rollback(spec, actor="operator", reason="bad") == {
        "version": one["version"],
        "previous": two["version"],
    }
    assert champion(spec) == one["version"]
    last = ledger.records(spec.name)[-1]
    assert (last["decision"], last["reason"], last["actor"]) == ("rolled back", "bad", "operator")
    with pytest.raises(RegistryError, match="no version to roll back to"):  # there was none before the first
        rollback(spec, actor="operator", reason="worse")
    assert (
        rollback(spec, actor="operator", reason="sorry", to_version=two["version"])["version"]
        == two["version"]
    )
    with pytest.raises(RegistryError, match="there is no version 99"):
        rollback(spec, actor="operator", reason="x", to_version="99")
    assert champion(spec) == two["version"]


def test_rollback_refuses_an_artifact_with_one_flipped_byte(
    two_champions: Any, artifact: Callable[[ModelSpec, str], Path]
) -> None:
    spec, one, two = two_champions
    stored = artifact(spec, one["version"])
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    stored.write_bytes(content)  # a good copy in this machine's cache does not hide it
    before = decisions(spec)
    with pytest.raises(ArtifactError, match="changed or damaged"):
        rollback(spec, actor="operator", reason="bad")
    assert champion(spec) == two["version"]
    assert decisions(spec) == before


def test_rollback_from_a_foreign_champion_returns_to_the_ledgers(two_champions: Any) -> None:
    spec, _, two = two_champions
    three = train(spec, as_of=LATE, force=True)
    registry.set_alias(spec.name, three["version"], "champion")
    assert rollback(spec, actor="operator", reason="not ours")["version"] == two["version"]
    assert [d[1] for d in decisions(spec)][-2:] == ["reported", "rolled back"]


@pytest.mark.parametrize("named", [False, True])
def test_a_rollback_killed_before_its_record_is_completed(two_champions: Any, named: bool) -> None:
    spec, one, two = two_champions
    to = one["version"] if named else None
    with killed_before_the_record():
        rollback(spec, actor="operator", reason="bad", to_version=to)
    assert champion(spec) == one["version"]
    assert rollback(spec, actor="operator", reason="bad", to_version=to) == {
        "version": one["version"], "previous": two["version"],
    }  # fmt: skip
    assert decisions(spec)[-1] == ("rollback", "rolled back", one["version"])
    assert len(decisions(spec)) == 3


def test_a_light_step_imports_nothing_heavy(passing: ModelSpec) -> None:
    import subprocess
    import sys

    train(passing, as_of=LATE)
    code = (
        "import sys, pathlib; from perennial.steps import dispatch; from perennial.spec.catalog import load_model; "
        f"dispatch.run('promote', load_model(pathlib.Path({str(passing.folder)!r})), as_of={LATE!r}, actor='test'); "
        "print([m for m in ('mlflow', 'xgboost', 'sklearn', 'scipy', 'optuna', 'airflow') if m in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert process.stdout.strip() == "[]"
    assert manifests.read(passing.name, "train", LATE) is not None
    assert settings().mlflow_uri.startswith("http://127.0.0.1:")
