"""The weekly drills: a champion is trained again, rollback targets are checked, and what is wrong opens an incident."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
)
from typer.testing import CliRunner

from perennial.alerting import incidents
from perennial.cli.app import app
from perennial.core import dates
from perennial.core.errors import StorageError
from perennial.governance import reproduction
from perennial.modeling import registry
from perennial.spec import catalog
from perennial.spec.model_spec import ModelSpec
from perennial.steps.promote import promote
from perennial.steps.score import score
from perennial.steps.train import train
from perennial.storage import ledger
from perennial.storage.ledger import LedgerKind
from perennial.training.runs import recipe
from perennial_airflow.execution import drills, runner
from support import toys

EARLY = dates.add_days(toys.LAST, -2)


def execute(task: Any, **context: Any) -> Any:
    return type(task).execute.__wrapped__(task, {"params": {}, **context})


def run_reproduction(try_number: int = 1, **params: Any) -> dict[str, Any]:
    """The run of the DAG: both tasks, one after the other."""
    dag = drills.dags()["perennial.reproduce"]
    context = {"params": params, "dag_run": SimpleNamespace(run_type="manual", triggering_user_name="ada")}
    chosen = execute(dag.get_task("choose_version"), **context)
    pulled = SimpleNamespace(xcom_pull=lambda task_ids: chosen, try_number=try_number, max_tries=2)
    return dict(execute(dag.get_task("reproduce"), **context, ti=pulled))


def open_incidents(spec: ModelSpec) -> dict[str, str]:
    return {i.signal: i.reason for i in incidents.read_log(spec.name).open}


def use(monkeypatch: pytest.MonkeyPatch, *specs: ModelSpec) -> None:
    monkeypatch.setattr(catalog, "load_models", lambda: ({s.name: s for s in specs}, []))
    monkeypatch.setattr(catalog, "load_model_by_name", lambda name: {s.name: s for s in specs}[name])


def test_a_champion_is_reproduced_and_a_difference_opens_an_incident(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = world.spec
    use(monkeypatch, spec)
    true_spec = registry.load_spec
    trained = true_spec(registry.get_version(spec.name, world.result["version"]))
    other_seed = trained.model_copy(update={"training": trained.training.model_copy(update={"seed": 99})})
    monkeypatch.setattr(registry, "load_spec", lambda _: other_seed)
    assert run_reproduction(model=spec.name, version=int(world.result["version"]))["outcome"] == "different"
    assert "is another model" in open_incidents(spec)["reproduction"]
    monkeypatch.setattr(registry, "load_spec", true_spec)
    assert run_reproduction()["outcome"] == "identical"
    assert open_incidents(spec) == {}
    records = ledger.records(spec.name, LedgerKind.REPRODUCTION)
    assert [r["decision"] for r in records] == ["different", "reproduced"]
    assert {r["actor"] for r in records} == {"ada"}


def test_a_version_that_cannot_be_trained_again_opens_an_incident(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = world.spec
    use(monkeypatch, spec)
    monkeypatch.setattr(recipe, "ARTIFACT", "other.json")
    with pytest.raises(AirflowException, match="has no recipe"):
        run_reproduction(model=spec.name)
    assert open_incidents(spec)["reproduction"].startswith("it cannot be trained again: ")
    (record,) = ledger.records(spec.name, LedgerKind.REPRODUCTION)
    assert (record["decision"], record["model_version"]) == ("failed", world.result["version"])
    assert (record["actor"], record["evidence"]) == ("ada", {"error": "ArtifactError"})


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StorageError("the lake cannot be reached", "check it"), "the lake cannot be reached"),
        (AirflowTaskTimeout("timeout"), "it took longer than the task may"),
    ],
)
def test_a_version_whose_last_try_fails_has_had_its_turn(
    world: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, reason: str
) -> None:
    spec = world.spec
    use(monkeypatch, spec)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(runner, "run_as_training", fail)
    for try_number in (1, 3):
        with pytest.raises((AirflowException, AirflowTaskTimeout)):
            run_reproduction(try_number, model=spec.name)
        failures = ledger.records(spec.name, LedgerKind.REPRODUCTION)
        assert bool(failures) == (try_number == 3), "others are tried again"
    assert failures[-1]["decision"] == "failed" and failures[-1]["reason"].endswith(f"again: {reason}")
    assert reason in open_incidents(spec)["reproduction"]


def test_a_mistake_in_the_form_opens_no_incident(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    untrained = world.spec.model_copy(update={"name": "untrained"})
    use(monkeypatch, world.spec, untrained)
    with pytest.raises(AirflowFailException, match="no training of version 99"):
        run_reproduction(model=world.spec.name, version=99)
    with pytest.raises(AirflowFailException, match="no champion"):
        run_reproduction(model="untrained")
    for spec in (world.spec, untrained):
        assert open_incidents(spec) == {} and ledger.records(spec.name, LedgerKind.REPRODUCTION) == []


def test_the_champion_that_waited_longest_is_chosen(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = drills.dags()["perennial.reproduce"].get_task("choose_version")
    never = world.spec.model_copy(update={"name": "never"})
    use(monkeypatch, world.spec, never)
    for model in (world.spec.name, "never"):
        if model == "never":
            chain = [r for r in ledger.records(world.spec.name) if r["kind"] in ("training", "promotion")]
            for r in chain:
                ledger.append(
                    model, kind=LedgerKind(r["kind"]), decision=ledger.Decision(r["decision"]), reason="", actor="test",
                    model_version=r["model_version"], evidence=r["evidence"],
                )  # fmt: skip
        assert execute(task)["model"] == model
        if model != "never":
            reproduction.record_failure(
                world.spec, "1", "a table version is gone", "StorageFaultError", actor="test"
            )
    with pytest.raises(AirflowException, match="which model"):
        execute(task, params={"version": 2})
    use(monkeypatch)
    with pytest.raises(AirflowSkipException):
        execute(task)


def test_a_rollback_target_is_checked_without_moving_the_champion(
    make_model: Callable[..., ModelSpec],
    artifact: Callable[[ModelSpec, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toys.let_all_pass(monkeypatch)
    spec = make_model(training={"rounds": 3})
    toys.publish(spec)
    use(monkeypatch, spec)
    task = drills.dags()["perennial.rollback_drill"].get_task("check_targets")
    one = train(spec, as_of=EARLY)["version"]
    promote(spec, as_of=EARLY, actor="test")
    assert execute(task)[spec.name]["outcome"] == "no target"
    assert ledger.records(spec.name, LedgerKind.ROLLBACK_DRILL) == []
    score(spec, start=toys.FIRST)
    two = train(spec, as_of=toys.LAST)["version"]
    promote(spec, as_of=toys.LAST, actor="test")

    checked = execute(task)[spec.name]
    assert (checked["outcome"], checked["version"], checked["rows"]) == ("passed", one, toys.ROWS)
    assert 0 < checked["seconds"] < 60 and open_incidents(spec) == {}

    true_load = registry.load_model

    def fewer_trees(*args: Any, **options: Any) -> Any:
        model = true_load(*args, **options)
        return replace(model, booster=model.booster[:1])

    monkeypatch.setattr(registry, "load_model", fewer_trees)
    assert execute(task)[spec.name]["outcome"] == "failed"
    cause = f"a rollback to version {one} would fail: version {one} predicts other values now"
    assert open_incidents(spec)["rollback_target"].startswith(cause)
    monkeypatch.setattr(registry, "load_model", true_load)
    file = artifact(spec, one)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"?")
    printed = CliRunner().invoke(app, ["rollback-drill", spec.name])
    assert printed.exit_code == 1 and "failed" in printed.stdout
    file.write_bytes(content)
    execute(task)
    assert open_incidents(spec) == {}
    decisions = [r["decision"] for r in ledger.records(spec.name, LedgerKind.ROLLBACK_DRILL)]
    assert decisions == ["passed", "failed", "failed", "passed"]
    champion = registry.get_champion(spec)
    assert champion is not None and champion.version == two, "nothing moved"


def test_the_schedules_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(dag.timetable.can_be_scheduled for dag in drills.dags().values())
    monkeypatch.setenv("PERENNIAL_DRILLS", "off")
    assert not any(dag.timetable.can_be_scheduled for dag in drills.dags().values())
