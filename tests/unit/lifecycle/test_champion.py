"""A champion that was moved, removed, deleted or replaced in MLflow, under each policy, with a real MLflow."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from perennial.core import dates
from perennial.core.errors import ArtifactError, RegistryError
from perennial.core.partitions import PartitionRange
from perennial.core.settings import settings
from perennial.lifecycle import champion as champion_module
from perennial.modeling import registry, training_records
from perennial.spec.model_spec import ModelSpec
from perennial.steps.monitor import monitor
from perennial.steps.promote import promote
from perennial.steps.rollback import rollback
from perennial.steps.score import score
from perennial.steps.train import train
from perennial.storage import ledger, manifests
from perennial.storage.ledger import LedgerKind
from perennial.training import challenger_evaluation
from support import toys

pytestmark = pytest.mark.usefixtures("without_drift_report")

EARLY, LATE = dates.add_days(toys.LAST, -1), toys.LAST
DAY = toys.FIRST


@dataclass(frozen=True)
class Promoted:
    """A model with a champion, and a later version that was not promoted.

    Attributes:
        spec: the model.
        champion: version of the champion.
        other: the later version.
        other_model_id: MLflow's id of its logged model.
    """

    spec: ModelSpec
    champion: str
    other: str
    other_model_id: str

    def under(self, policy: str) -> ModelSpec:
        """The model with another ``gate.external_change``."""
        gate = self.spec.gate.model_copy(update={"external_change": policy})
        return self.spec.model_copy(update={"gate": gate})

    def move(self, version: str) -> None:
        registry.set_alias(self.spec.name, version, "champion")

    def register_foreign(self, name: str | None = None) -> str:
        """Register a model without us, under this model's name or another; returns the version's number."""
        model_id = self.other_model_id
        created = client().create_model_version(
            name or self.spec.name, f"models:/{model_id}", model_id=model_id
        )
        return str(created.version)

    def remove_alias(self) -> None:
        client().delete_registered_model_alias(self.spec.name, "champion")

    def external_changes(self) -> list[tuple[str, str]]:
        """Decision and version of each record."""
        ledger.verify(self.spec.name)
        records = ledger.records(self.spec.name, LedgerKind.EXTERNAL_CHANGE)
        return [(r["decision"], r["model_version"]) for r in records]

    def scored_by(self) -> set[str]:
        return {row["model_version"] for row in toys.content_of("predictions", self.spec.name)}


def client() -> Any:
    import mlflow

    return mlflow.MlflowClient(settings().mlflow_uri)


def decisions(spec: ModelSpec) -> list[tuple[str, str, str]]:
    ledger.verify(spec.name)
    return [
        (r["kind"], r["decision"], r["model_version"])
        for r in ledger.records(spec.name)
        if r["kind"] != "training"
    ]


def refusal(spec: ModelSpec) -> str:
    """What scoring says when it refuses."""
    with pytest.raises(ArtifactError) as error:
        score(spec, start=DAY)
    assert error.value.partition == DAY
    return str(error.value)


def make_promoted(folder: Path) -> Promoted:
    """Train two versions, of which the first is champion."""
    spec = toys.model(folder, toys.unique(), training={"rounds": 3})
    toys.publish(spec)
    one = train(spec, as_of=EARLY)["version"]
    promote(spec, as_of=EARLY, actor="test")
    two = train(spec, as_of=EARLY, force=True)["version"]
    return Promoted(spec, one, two, registry.get_version(spec.name, two).model_id)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory, mlflow_url: str) -> tuple[Promoted, Path]:
    """A promoted model for the tests that only move its alias, and its working folder."""
    folder = tmp_path_factory.mktemp("promoted")
    with toys.working_folder(folder, mlflow_url) as patch:
        toys.let_all_pass(patch)
        return make_promoted(folder / "models"), folder / "home"


@pytest.fixture
def promoted(
    made_once: tuple[Promoted, Path], mlflow_home: Path, monkeypatch: pytest.MonkeyPatch
) -> Promoted:
    """The promoted model with a copy of its lake, and its champion where it belongs."""
    model, home = made_once
    toys.let_all_pass(monkeypatch)
    shutil.rmtree(mlflow_home)
    shutil.copytree(home, mlflow_home)
    model.move(model.champion)
    return model


@pytest.fixture
def to_destroy(mlflow_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Promoted:
    """A promoted model whose versions may be deleted."""
    toys.let_all_pass(monkeypatch)
    return make_promoted(tmp_path / "models")


def test_nothing_is_recorded_while_mlflow_and_ledger_agree(promoted: Promoted) -> None:
    for policy in ("refuse", "follow", "restore"):
        assert score(promoted.under(policy), start=DAY, force=True)["model_version"] == promoted.champion
    assert promoted.external_changes() == []


def test_a_moved_champion_is_refused_until_it_is_put_back(promoted: Promoted) -> None:
    promoted.move(promoted.other)
    for _ in range(2):
        message = refusal(promoted.spec)
        assert f"moved in MLflow to version {promoted.other}" in message
        assert f"the ledger's champion is version {promoted.champion}" in message
        assert f"perennial run rollback --model {promoted.spec.name}" in message
    assert promoted.external_changes() == [("reported", promoted.other)]
    assert ledger.records(promoted.spec.name)[-1]["partition"] == DAY
    assert promoted.scored_by() == set()
    assert manifests.read(promoted.spec.name, "score", DAY) is None
    assert rollback(promoted.spec, actor="operator", reason="not ours")["version"] == promoted.champion
    assert score(promoted.spec, start=DAY)["model_version"] == promoted.champion
    assert promoted.external_changes() == [("reported", promoted.other)]


def test_a_person_can_adopt_the_moved_champion(promoted: Promoted) -> None:
    promoted.move(promoted.other)
    refusal(promoted.spec)
    rollback(promoted.spec, actor="operator", reason="we want it", to_version=promoted.other)
    assert score(promoted.spec, start=DAY)["model_version"] == promoted.other
    last = ledger.records(promoted.spec.name)[-1]
    assert (last["decision"], last["model_version"], last["actor"]) == (
        "rolled back", promoted.other, "operator",
    )  # fmt: skip


def test_follow_adopts_a_version_that_the_ledger_has(promoted: Promoted) -> None:
    promoted.move(promoted.other)
    spec = promoted.under("follow")
    for _ in range(2):
        assert score(spec, start=DAY)["model_version"] == promoted.other
    assert promoted.external_changes() == [("reported", promoted.other), ("followed", promoted.other)]
    assert f"version {promoted.other} was adopted" in champion_module.changed_within(
        spec, PartitionRange(DAY, DAY)
    )
    assert champion_module.changed_within(spec, PartitionRange(LATE, LATE)) == ""
    # it is the ledger's champion now, under every policy
    assert score(promoted.spec, start=LATE)["model_version"] == promoted.other


def test_restore_puts_the_champion_back(promoted: Promoted) -> None:
    spec = promoted.under("restore")
    for remove in (lambda: promoted.move(promoted.other), promoted.remove_alias):
        remove()
        assert score(spec, start=DAY, force=True)["model_version"] == promoted.champion
        alias = registry.get_champion(spec)
        assert alias is not None
        assert alias.version == promoted.champion
    assert [d for d, _ in promoted.external_changes()] == ["reported", "restored"] * 2


@pytest.mark.parametrize("policy", ["refuse", "follow"])
def test_a_removed_alias_is_no_first_start(promoted: Promoted, policy: str) -> None:
    promoted.remove_alias()
    spec = promoted.under(policy)
    assert "the alias champion was removed in MLflow" in refusal(spec)
    assert promoted.external_changes() == [("reported", "")]
    # the next training is compared with the ledger's champion, and takes its place
    result = train(spec, as_of=LATE)
    assert result["gate"]["champion"] == promoted.champion
    assert result["gate"]["against_champion"] is not None
    answer = promote(spec, as_of=LATE, actor="test")
    assert (answer["promoted"], answer["previous"]) == (True, promoted.champion)
    assert score(spec, start=DAY)["model_version"] == result["version"]


def test_after_versions_were_deleted_the_next_is_compared_all_the_same(to_destroy: Promoted) -> None:
    name, champion = to_destroy.spec.name, to_destroy.champion
    client().delete_model_version(name, champion)
    for policy in ("refuse", "restore"):
        message = refusal(to_destroy.under(policy))
        assert f"champion is version {champion}, which was deleted in MLflow" in message
    with pytest.raises(RegistryError, match=f"there is no version {champion} in MLflow"):
        rollback(to_destroy.spec, actor="operator", reason="back")
    # the whole model is deleted, and somebody gives its name and its champion's number to another
    client().delete_registered_model(name)
    client().create_registered_model(name)
    assert to_destroy.register_foreign() == champion
    to_destroy.move(champion)
    for policy in ("refuse", "follow", "restore"):
        message = refusal(to_destroy.under(policy))
        assert "was replaced in MLflow by another version of that number" in message
    client().delete_registered_model(name)
    assert "which was deleted in MLflow" in refusal(to_destroy.spec)
    result = train(to_destroy.spec, as_of=LATE)
    assert result["gate"]["champion"] == champion
    assert result["gate"]["against_champion"] is not None
    assert int(result["version"]) == int(to_destroy.other) + 1, "no number is used twice"
    answer = promote(to_destroy.spec, as_of=LATE, actor="test")
    assert (answer["promoted"], answer["previous"]) == (True, champion)
    assert score(to_destroy.spec, start=DAY)["model_version"] == result["version"]
    left = client().search_model_versions(f"name = '{name}'")
    assert [str(v.version) for v in left] == [result["version"]]


def test_a_champion_whose_files_are_gone_needs_a_person(to_destroy: Promoted, mlflow_folder: Path) -> None:
    version = registry.get_version(to_destroy.spec.name, to_destroy.champion)
    client().delete_registered_model(to_destroy.spec.name)
    next((mlflow_folder / "artifacts").rglob(f"{version.model_id}/artifacts/model.ubj")).unlink()
    shutil.rmtree(settings().home / "cache")
    runs = len(client().search_runs([client().get_experiment_by_name(to_destroy.spec.name).experiment_id]))
    with pytest.raises(ArtifactError, match=r"could not be compared with version(.|\n)*train with force"):
        train(to_destroy.spec, as_of=LATE)
    assert runs == len(
        client().search_runs([client().get_experiment_by_name(to_destroy.spec.name).experiment_id])
    )
    result = train(to_destroy.spec, as_of=LATE, force=True)
    assert result["gate"]["champion"] == to_destroy.champion
    assert result["gate"]["against_champion"] is None
    assert result["gate"]["not_compared"] == (
        f"the files of version {to_destroy.champion} are lost or cannot be checked, and a person forced the training"
    )
    assert promote(to_destroy.spec, as_of=LATE, actor="test")["promoted"]


def test_a_champion_of_which_the_ledger_has_no_digests_needs_a_person(
    to_destroy: Promoted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ledgers of earlier releases did not record digests."""
    spec, champion = to_destroy.spec, to_destroy.champion
    parse = training_records.TrainingRecord.parse

    def without_digests(record: ledger.LedgerRecord) -> training_records.TrainingRecord:
        parsed = parse(record)
        return replace(parsed, digests={}) if parsed.version == champion else parsed

    monkeypatch.setattr(training_records.TrainingRecord, "parse", without_digests)
    training_records._records.clear()
    with pytest.raises(ArtifactError, match="no digests of its files"):
        train(spec, as_of=LATE)
    result = train(spec, as_of=LATE, force=True)
    assert (result["gate"]["champion"], result["gate"]["against_champion"]) == (champion, None)
    assert "are lost or cannot be checked, and a person forced" in result["gate"]["not_compared"]
    assert promote(spec, as_of=LATE, actor="test")["promoted"]
    training_records._records.clear()


def test_a_version_of_somebody_else_is_not_followed(promoted: Promoted) -> None:
    foreign = promoted.register_foreign()
    promoted.move(foreign)
    for policy in ("follow", "refuse"):
        assert f"moved in MLflow to version {foreign}" in refusal(promoted.under(policy))
    with pytest.raises(ArtifactError, match="the ledger has no training of it"):
        rollback(promoted.spec, actor="operator", reason="adopt", to_version=foreign)
    assert score(promoted.under("restore"), start=DAY)["model_version"] == promoted.champion


def test_a_champion_of_which_the_ledger_knows_nothing_is_refused(promoted: Promoted) -> None:
    """A new or emptied lake with an MLflow that was in use before."""
    shutil.rmtree(Path(settings().lake, "ledger"))
    for policy in ("refuse", "follow", "restore"):
        spec = promoted.under(policy)
        message = refusal(spec)
        assert "the ledger has no promotion of this model" in message
        assert "restore the lake's ledger" in message
        with pytest.raises(ArtifactError, match="the ledger has no promotion of this model"):
            train(spec, as_of=LATE)
    assert not promote_without_training(promoted.spec)


def promote_without_training(spec: ModelSpec) -> bool:
    """Whether the last training, which the ledger does not have any more, is promoted."""
    from perennial.core.errors import StorageError

    with pytest.raises(StorageError, match="differs from the ledger's record"):
        promote(spec, as_of=EARLY, actor="test")
    return False


def test_a_name_that_is_taken_is_told_before_the_training(promoted: Promoted, passing: ModelSpec) -> None:
    client().create_registered_model(passing.name)
    champion_module.check_name(
        passing
    )  # as a training leaves it that was killed after it had created the name
    promoted.register_foreign(passing.name)
    with pytest.raises(ArtifactError, match="that Perennial did not train") as error:
        train(passing, as_of=LATE)
    assert "give this model another name" in error.value.remedy
    registry.set_alias(passing.name, "1", "champion")
    assert "that Perennial did not train" in refusal(passing)
    assert client().get_experiment_by_name(passing.name) is None


def test_monitoring_follows_the_ledger_and_reports_the_deviation(promoted: Promoted) -> None:
    score(promoted.spec, start=DAY, end=LATE)
    promoted.move(promoted.other)
    result = monitor(promoted.spec, as_of=LATE)
    assert result["model_version"] == promoted.champion
    signal = result["signals"]["champion"]
    assert signal["state"] == "bad"
    assert f"moved in MLflow to version {promoted.other}" in signal["reason"]
    rollback(promoted.spec, actor="operator", reason="back")
    result = monitor(promoted.spec, as_of=LATE)
    assert (result["status"], result["signals"]["champion"]["state"]) == ("monitored", "ok")


def test_a_manifest_that_claims_to_have_passed_the_gate_promotes_nothing(
    promoted: Promoted, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from perennial.core.errors import StorageError
    from perennial.training import challenger_evaluation

    monkeypatch.setattr(challenger_evaluation, "gate_decision", lambda *_: (False, ["no"]))
    train(promoted.spec, as_of=LATE)
    manifest = manifests.read(promoted.spec.name, "train", LATE)
    assert manifest is not None
    gate = manifest.result["gate"] | {"passed": True}
    manifests.write(replace(manifest, result=manifest.result | {"gate": gate}), 0)
    with pytest.raises(StorageError, match="differs from the ledger's record"):
        promote(promoted.spec, as_of=LATE, actor="test")


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
    make_model: Callable[..., ModelSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(challenger_evaluation, "gate_decision", lambda *_: (False, ["no"]))
    spec = make_model(training={"rounds": 3})
    toys.publish(spec)
    result = train(spec, as_of=LATE)
    registry.set_alias(spec.name, result["version"], "champion")
    assert promote(spec, as_of=LATE, actor="test")["promoted"] is False
    assert decisions(spec) == [("external change", "reported", result["version"])]


def test_a_killed_promotion_is_no_deviation(promoted: Promoted) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    result = train(promoted.spec, as_of=LATE)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(ledger, "append", killed)
        promote(promoted.spec, as_of=LATE, actor="test")
    assert score(promoted.spec, start=DAY)["model_version"] == result["version"]
    assert promoted.external_changes() == []


def test_a_reader_beside_promotions_sees_no_deviation(promoted: Promoted) -> None:
    ended = threading.Event()

    reads: list[str] = []

    def read() -> None:
        while not ended.is_set():
            version = champion_module.get_serving_champion(promoted.spec, partition=DAY, actor="test")
            reads.append(version.version if version else "")

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        try:
            for n in range(6):
                to = promoted.other if n % 2 == 0 else promoted.champion
                rollback(promoted.spec, actor="operator", reason="to and fro", to_version=to)
                before = len(reads)
                while len(reads) < before + 2 and not reader.done():  # the second began after the move
                    time.sleep(0.01)
        finally:
            ended.set()
        reader.result(60)
    assert set(reads) == {promoted.champion, promoted.other}
    assert promoted.external_changes() == []


def test_only_this_module_reads_the_alias() -> None:
    root = Path(champion_module.__file__).parents[1]
    readers = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if re.search(r"\bregistry\.get_champion\(", path.read_text())
    }
    assert readers == {"lifecycle/champion.py"}
