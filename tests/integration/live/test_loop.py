"""The loop through a real Airflow and a real MLflow, on a toy model."""

from __future__ import annotations

import threading

import httpx
import pytest
from rich.console import Console

from perennial.core import dates
from perennial.core.errors import PerennialError
from perennial.local_stack import components, demo, processes, servers, summary
from perennial.local_stack.driver import Driver, DriverStopped, RunFailedError
from perennial.local_stack.sample.plan import Plan
from perennial.modeling import registry
from perennial.storage import delta_tables, ledger, manifests
from perennial.storage.ledger import LedgerKind
from support import lake
from support.live import BROKEN, PLAN, Live

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(600)]
STAGES = ("data", "train", "score", "monitor", "rollback")


@pytest.fixture
def played(live: Live) -> Live:
    """The toy's loop is done; the first test that needs it plays it."""
    with live.board() as board:
        demo.run_plans(live.config, (PLAN,), board)
    return live


def runs(live: Live) -> dict[str, list[str]]:
    return {stage: [r["dag_run_id"] for r in live.airflow.runs(f"{PLAN.model}.{stage}")] for stage in STAGES}


def test_every_model_has_its_five_dags_and_a_broken_one_takes_none_away(live: Live) -> None:
    known = set(live.airflow.paused())
    for model in ("flight_late", "flight_delay", "digits", PLAN.model):
        assert {f"{model}.{stage}" for stage in STAGES} <= known
    assert not any(dag.startswith(BROKEN) for dag in known)
    told = "\n".join(live.airflow.import_errors())
    assert BROKEN in told and "clairvoyance" in told and "model.yaml:2" in told


def test_the_loop_runs_from_history_to_the_last_night(played: Live) -> None:
    nights = dates.dates(dates.add_days(PLAN.trained_until, 1), PLAN.latest)
    for night in nights:
        data, score = manifests.read(PLAN.model, "data", night), manifests.read(PLAN.model, "score", night)
        assert data and score
        assert data.rows_in == data.rows_out + data.quarantined
        assert score.rows_in == score.rows_out == data.rows_out
    rows = lake.read_table(delta_tables.table_uri("predictions", PLAN.model), start=nights[0], end=nights[-1])
    keys = set(zip(rows["id"].to_pylist(), rows[delta_tables.PARTITION].to_pylist(), strict=True))
    assert len(keys) == rows.num_rows == len(nights) * 60
    assert ledger.records(PLAN.model, LedgerKind.PROMOTION)[0]["decision"] == "promoted"
    first = registry.get_version(PLAN.model, "1")
    assert first.refit_range is not None and first.refit_range.end == first.holdout_range.end
    for stage, found in runs(played).items():
        states = {r["state"] for r in played.airflow.runs(f"{PLAN.model}.{stage}")}
        assert states <= {"success"}, f"{stage}: {found}"


def test_each_night_is_a_run_of_its_own_partition(played: Live) -> None:
    nights = set(dates.dates(dates.add_days(PLAN.trained_until, 1), PLAN.latest))
    for stage in ("data", "score"):
        keys = [
            r["partition_key"] for r in played.airflow.runs(f"{PLAN.model}.{stage}") if r["partition_key"]
        ]
        assert set(keys) == nights and len(keys) == len(nights)


def test_playing_again_repeats_nothing(played: Live) -> None:
    before = runs(played)
    with played.board() as board:
        demo.run_plans(played.config, (PLAN,), board)
    assert runs(played) == before


def test_the_outcome_names_nights_versions_and_decisions(played: Live) -> None:
    console = Console(record=True, width=180)
    summary.print_summary(console, (PLAN,))
    text = console.export_text()
    assert "12 nights published" in text and "version 1 trained" in text and "promoted" in text
    assert "retraining" in text


def test_a_training_by_hand_is_recorded_with_who_and_why(played: Live) -> None:
    day = PLAN.manual_training_on
    decisions = ledger.records(PLAN.model, LedgerKind.RETRAINING)
    trained = [r for r in ledger.records(PLAN.model, LedgerKind.TRAINING) if r["partition"] == day]
    assert {r["decision"] for r in decisions if r["partition"] == day} == {"declined"} and len(trained) == 1
    reason = "triggered by hand to compare with the declined retraining"
    assert trained[0]["evidence"]["request"] == {"actor": "admin", "reason": reason}
    assert "version 2 trained" in " ".join(event.what for event in summary.events(PLAN))


def test_a_failed_run_is_told_with_dag_task_run_and_cause(played: Live) -> None:
    late = Plan(PLAN.model, PLAN.first, PLAN.trained_until, dates.add_days(PLAN.latest, 1), False)
    with played.board() as board, pytest.raises(RunFailedError) as error:
        demo.run_plans(played.config, (late,), board)
    told = str(error.value)
    assert f"{PLAN.model}.data" in told and "task data" in told and late.latest in told
    assert "make run" in told and f"/dags/{PLAN.model}.data/runs/" in told


def test_a_driver_stops_when_asked(live: Live) -> None:
    halt = threading.Event()
    halt.set()
    ahead = Plan(PLAN.model, PLAN.first, PLAN.trained_until, dates.add_days(PLAN.latest, 5), False)
    with live.board() as board, pytest.raises((DriverStopped, PerennialError)):
        Driver(ahead, live.airflow, board, halt).run()


def test_nobody_gets_in_without_the_password(live: Live) -> None:
    url = f"http://127.0.0.1:{live.config.airflow_port}"
    assert httpx.get(f"{url}/api/v2/dags", trust_env=False).status_code == 401
    wrong = httpx.post(f"{url}/auth/token", json={"username": "admin", "password": "admin"}, trust_env=False)
    assert wrong.status_code == 401


def test_starting_again_while_it_runs_changes_nothing(live: Live) -> None:
    before = {name: processes.find_server(name, live.config.state) for name in components.RUNNING}
    with live.board() as board:
        servers.start_all(live.config, board)
    assert None not in before.values()
    assert {name: processes.find_server(name, live.config.state) for name in components.RUNNING} == before


def test_nothing_is_written_to_the_users_folder(played: Live) -> None:
    assert [str(p) for p in played.user.rglob("*") if p.is_file()] == []
