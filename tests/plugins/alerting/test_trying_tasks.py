"""Tasks that a person tries with Airflow's own commands: they work as always, and nobody is alerted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perennial.alerting import incidents
from perennial.alerting.incidents import SignalObservation
from perennial.core.settings import ROOT
from perennial.spec.model_spec import ModelSpec
from perennial.storage import manifests
from perennial.storage.manifests import Manifest
from perennial_airflow import run_request
from support import toys
from support.databases import airflow_metadata
from support.live import webhook

DAY = "2024-01-05"


@pytest.fixture
def model(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModelSpec, list[Any]]]:
    """A model with a webhook in a real metadata database, and what the webhook receives; none of its files landed."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db

    monkeypatch.setenv("PERENNIAL_MODELS", str(home / "models"))
    with webhook() as (address, received):
        channel = {"name": "hook", "kind": "webhook", "url": address}
        spec = toys.model(home / "models", "toy", alerts={"channels": [channel]})
        airflow_metadata.create()
        DagBundlesManager().sync_bundles_to_db()
        bag = DagBag(str(ROOT / "dags" / "models.py"), bundle_name="dags-folder")
        assert not bag.import_errors
        sync_bag_to_db(bag, "dags-folder", None)
        yield spec, received


def airflow(*arguments: str) -> None:
    """Run a command of Airflow in this process."""
    from airflow.cli.cli_parser import get_parser

    parsed = get_parser().parse_args(arguments)
    parsed.func(parsed)


@pytest.mark.parametrize("tried", [True, False], ids=["as it is", "without the check"])
def test_a_failure_opens_no_incident(
    model: tuple[ModelSpec, list[Any]], tried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, received = model
    if not tried:  # proves that the failure would open one
        monkeypatch.setattr(run_request, "is_test", lambda *_: False)
    airflow("tasks", "test", f"{spec.name}.data", "data", "--task-params", f'{{"start": "{DAY}"}}')
    opened = [] if tried else ["failure:data"]
    assert [i.signal for i in incidents.read_log(spec.name).open] == opened
    assert [message["signal"] for message in received] == opened


def test_a_success_closes_no_incident_and_a_verdict_opens_none(model: tuple[ModelSpec, list[Any]]) -> None:
    spec, received = model
    incidents.record_signals(spec, DAY, {"failure:notify": SignalObservation("bad", "killed")})
    before = Path(incidents.log_uri(spec.name)).read_text()
    result = {"verdict": "ok", "reason": "", "signals": {"features": {"state": "bad", "reason": "x moved"}}}
    manifests.write(Manifest(spec.name, "monitor", DAY, {}, result), 0)
    airflow("tasks", "test", f"{spec.name}.monitor", "notify", "--task-params", f'{{"as_of": "{DAY}"}}')
    assert Path(incidents.log_uri(spec.name)).read_text() == before and received == []


def test_a_dag_tried_with_an_executor_is_known_by_its_user() -> None:
    assert run_request.is_test({"dag_run": SimpleNamespace(triggering_user_name="dag_test")})  # type: ignore[arg-type]
    assert not run_request.is_test({"dag_run": SimpleNamespace(triggering_user_name="ann")})  # type: ignore[arg-type]
    assert not run_request.is_test({}) and not run_request.is_test()
