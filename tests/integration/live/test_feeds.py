"""Feeds of hours, weeks and months, and of a database, in a running Airflow, from the first rows to a catch-up."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from perennial.core.errors import PerennialError
from perennial.local_stack import components, processes, servers
from perennial.local_stack.airflow_client import DONE
from perennial.spec.model_spec import ModelSpec
from perennial.storage import landing, ledger, manifests
from perennial.storage.ledger import LedgerKind
from support import toys
from support.databases import postgres
from support.live import BACKFILL, DATABASE, FEEDS, HISTORY, MISSED, PREDICTIONS, Live, await_, feed_model

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(900)]
#: One with every other character that a URI quotes, too.
SECRETS = (postgres.PASSWORD, "s3cret-pass%2Fword", "an0ther/secret", "an0ther%2Fsecret")


class Feeds:
    """The feeds of a running stack.

    Args:
        live: the stack.
        server: the database server of `DATABASE`.
    """

    def __init__(self, live: Live, server: postgres.Server) -> None:
        self.live, self.server = live, server
        self.specs = [live.others[name] for name in FEEDS]

    def land(self, spec: ModelSpec, keys: list[str]) -> None:
        """Deliver the rows and labels of partitions."""
        if FEEDS[spec.name].source:
            toys.land(spec, keys[0], len(keys))
            return
        toys.write(landing.source_uri(spec.references[0].source), toys.places())
        for key in keys:
            rows = toys.rows(spec.task, key)
            self.server.insert("toy_rows", rows)
            self.server.insert("toy_labels", toys.labels(spec.task, rows))

    def of_all(self, stage: str, start: Callable[[ModelSpec, str], str]) -> None:
        """Start a run of a stage of each model, and wait until all have succeeded."""
        runs = {f"{spec.name}.{stage}": start(spec, f"{spec.name}.{stage}") for spec in self.specs}
        for dag, run in runs.items():
            assert self.live.airflow.wait(dag, run) == "success", self.live.airflow.failure_reason(dag, run)

    def scored(self, keys: dict[str, list[str]], runs: int) -> None:
        """Wait until so many runs, which events started, have scored each partition."""

        def over() -> bool:
            states = [
                (run["run_type"], run["state"])
                for name, of_model in keys.items()
                for key in of_model
                for run in self.live.runs_of(f"{name}.score", key)
            ]
            assert ("asset_triggered", "failed") not in states
            return states == [("asset_triggered", "success")] * (runs * sum(map(len, keys.values())))

        await_(over, 300, lambda: {name: self.live.airflow.runs(f"{name}.score") for name in keys})

    def content(self) -> dict[str, Any]:
        """The tables of all models, without what differs from run to run, and the table in the database."""
        kinds = ("published", "labels", "quarantine", "predictions")
        columns = "partition_date, id, prediction, model_version"
        return {
            PREDICTIONS: self.server.rows(f"SELECT {columns} FROM {PREDICTIONS} ORDER BY 1, 2"),
            **{f"{kind}/{s.name}": toys.content_of(kind, s.name) for s in self.specs for kind in kinds},
        }


def history(spec: ModelSpec) -> tuple[str, str]:
    """The first and the last partition that the first champion is trained on."""
    first = FEEDS[spec.name].first
    return first, spec.cadence.shift(first, HISTORY - 1)


def after_history(spec: ModelSpec, start: int, count: int) -> list[str]:
    """Keys of partitions after the history."""
    return spec.cadence.keys(*(spec.cadence.shift(history(spec)[1], n) for n in (start + 1, start + count)))


@pytest.fixture
def feeds(live: Live, postgres_server: postgres.Server) -> Feeds:
    """The feeds with their first champions, which Airflow's runs have trained and promoted; done once."""
    feeds = Feeds(live, postgres_server)
    if ledger.records(feeds.specs[0].name, LedgerKind.PROMOTION):
        return feeds
    connection = {
        "connection_id": DATABASE, "conn_type": "postgres", "host": "127.0.0.1", "port": postgres_server.port,
        "login": "postgres", "password": postgres.PASSWORD, "schema": "postgres",
    }  # fmt: skip
    live.airflow.call("POST", "/connections", json=connection)
    for spec in feeds.specs:
        feeds.land(spec, spec.cadence.keys(*history(spec)))

    def publish(spec: ModelSpec, dag: str) -> str:
        start, end = history(spec)
        return live.airflow.trigger(dag, conf={"start": start, "end": end})

    def train(spec: ModelSpec, dag: str) -> str:
        conf = {"as_of": history(spec)[1], "reason": "the first model"}
        return live.airflow.trigger(dag, conf=conf)

    feeds.of_all("data", publish)
    for spec in feeds.specs:
        assert sorted(manifests.finished(spec.name, "data")) == spec.cadence.keys(*history(spec))
    feeds.of_all("train", train)
    for spec in feeds.specs:
        assert ledger.records(spec.name, LedgerKind.PROMOTION), spec.name
    return feeds


def backfill(live: Live, spec: ModelSpec, keys: list[str], behavior: str, **conf: Any) -> None:
    """Start a backfill of a model's data, once Airflow takes the one before it for ended."""
    earlier = functools.partial(
        live.airflow.call, "GET", "/backfills", params={"dag_id": f"{spec.name}.data"}
    )
    await_(lambda: all(b["completed_at"] for b in earlier()["backfills"]), 120, earlier)
    start, end = (spec.cadence.start_of(key) for key in (keys[0], keys[-1]))
    request = {
        "dag_id": f"{spec.name}.data", "from_date": start.isoformat(), "to_date": end.isoformat(),
        "run_backwards": True, "max_active_runs": 2, "reprocess_behavior": behavior, "dag_run_conf": conf,
    }  # fmt: skip
    live.airflow.call("POST", "/backfills", json=request)


def test_a_backfill_of_every_feed_gives_the_same_twice(feeds: Feeds) -> None:
    live = feeds.live
    keys = {spec.name: after_history(spec, 0, BACKFILL) for spec in feeds.specs}
    for spec in feeds.specs:
        feeds.land(spec, keys[spec.name])
    contents = []
    for n, conf in enumerate(({}, {"force": True})):
        behavior = "completed" if n else "none"
        for spec in feeds.specs:
            backfill(live, spec, keys[spec.name], behavior, **conf)
        feeds.scored(keys, n + 1)
        for name, of_model in keys.items():
            runs = [r for r in live.airflow.runs(f"{name}.data") if r["run_type"] == "backfill"]
            assert Counter((r["partition_key"], r["state"]) for r in runs) == dict.fromkeys(
                [(key, "success") for key in of_model], n + 1
            )
        contents.append(feeds.content())
    assert contents[0] == contents[1]
    for spec in feeds.specs:
        scored = Counter(row["partition_date"] for row in contents[0][f"predictions/{spec.name}"])
        assert scored == dict.fromkeys(keys[spec.name], toys.ROWS)
    assert Counter(row["partition_date"] for row in contents[0][PREDICTIONS]) == dict.fromkeys(
        keys["toy_database"], toys.ROWS
    )


def stop_scheduler(live: Live) -> None:
    """Stop Airflow's scheduler, and the supervisor that would start it again."""
    for name in (components.SUPERVISOR, "scheduler"):
        server = processes.find_server(name, live.config.state)
        assert server
        server.kill()
        await_(lambda server=server: not processes.is_alive(server), 10, lambda name=name: name)


def resume_schedules(live: Live, specs: list[ModelSpec]) -> None:
    """Remove the end of the schedules, and wait until the DAG processor has read that."""
    for spec in specs:
        feed_model(spec.folder.parent, spec.name, ended=False)
    dags = [f"/dags/{spec.name}.{stage}" for spec in specs for stage in ("data", "monitor")]
    live.airflow.call("PUT", f"/parseDagFile/{live.airflow.call('GET', dags[0])['file_token']}")
    await_(
        lambda: all(live.airflow.call("GET", dag)["next_dagrun_run_after"] for dag in dags), 200, dags.__str__
    )


def test_what_became_due_during_a_downtime_is_done_once_and_in_order(feeds: Feeds) -> None:
    live, airflow = feeds.live, feeds.live.airflow
    missed = {spec.name: after_history(spec, BACKFILL, MISSED) for spec in feeds.specs}
    stop_scheduler(live)
    for spec in feeds.specs:
        assert missed[spec.name][-1] == FEEDS[spec.name].latest
        feeds.land(spec, missed[spec.name])
    resume_schedules(live, feeds.specs)
    with live.board() as board:
        servers.start_all(live.config, board)
    feeds.scored(missed, 1)

    def monitored() -> bool:
        runs = [run for name, keys in missed.items() for run in live.runs_of(f"{name}.monitor", keys[-1])]
        return len(runs) == len(missed) and all(run["state"] in DONE for run in runs)

    await_(monitored, 300, lambda: {name: airflow.runs(f"{name}.monitor") for name in missed})
    for spec in feeds.specs:
        keys = missed[spec.name]
        (asset,) = airflow.call("GET", "/assets", params={"name_pattern": f"data/{spec.name}"})["assets"]
        events = airflow.call("GET", "/assets/events", params={"asset_id": asset["id"]})["asset_events"]
        published = Counter(event["partition_key"] for event in events)
        assert {key: published[key] for key in keys} == dict.fromkeys(keys, 1)
        assert set(
            Counter(r["partition_date"] for r in toys.content_of("predictions", spec.name)).values()
        ) == {toys.ROWS}
        record = manifests.read(spec.name, "monitor", keys[-1])
        assert record is not None and record.model_version == "1"
        backlog = record.result["signals"]["backlog"]["reason"]
        assert "not published" not in backlog and "not scored" not in backlog
        verdicts = manifests.finished(spec.name, "monitor")
        assert sorted(verdicts) == sorted(verdicts, key=lambda key: verdicts[key]), spec.name
        # a late verdict decides nothing
        assert {r["partition"] for r in ledger.records(spec.name, LedgerKind.RETRAINING)} == {keys[-1]}


def test_the_password_of_the_database_is_nowhere(feeds: Feeds) -> None:
    live, dag = feeds.live, "toy_database.data"
    path = f"/connections/{DATABASE}"
    shown = live.airflow.call("GET", path)
    live.airflow.call(
        "PATCH", path, params={"update_mask": "password"}, json=shown | {"password": SECRETS[2]}
    )
    run = live.airflow.trigger(dag, key=FEEDS["toy_database"].latest)
    assert live.airflow.wait(dag, run) == "failed"
    reason = live.airflow.failure_reason(dag, run)
    assert f"connection {DATABASE} (127.0.0.1:{feeds.server.port}/postgres): it refuses the login" in reason
    live.airflow.call(
        "PATCH", path, params={"update_mask": "password"}, json=shown | {"password": SECRETS[0]}
    )
    assert shown["password"] not in SECRETS
    # logs, lake, MLflow, and Airflow's database with XComs, rendered templates, audit log and the encrypted connection
    files = [path for path in live.config.home.rglob("*") if path.is_file()]
    assert {"airflow.db", "scheduler.log", "api-server.log", "attempt=1.log"} <= {path.name for path in files}
    quoting = [str(path) for path in files if any(map(path.read_bytes().count, map(str.encode, SECRETS)))]
    assert quoting == []


@pytest.mark.parametrize("name", FEEDS)
def test_a_key_of_another_cadence_is_refused_before_anything_runs(live: Live, name: str) -> None:
    with pytest.raises(PerennialError, match="the partition key is '2024-02-30', not"):
        live.airflow.trigger(f"{name}.data", key="2024-02-30")
