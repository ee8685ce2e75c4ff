"""Waiting for a partition: the task, its trigger, and what it says when nothing comes."""

from __future__ import annotations

import asyncio
import importlib
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.models.trigger import TriggerFailureReason
from airflow.providers.amazon.aws.triggers.s3 import S3KeyTrigger
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSkipException,
    TaskDeferred,
)
from airflow.triggers.base import BaseTrigger, TriggerEvent

from perennial.spec.model_spec import ModelSpec
from perennial.spec.sources import QuerySource
from perennial.storage import landing, manifests, object_store
from perennial.storage.manifests import Manifest
from perennial_airflow.dag_factory.factory import STAGES
from perennial_airflow.sensors.partition_arrival import AwaitPartition
from support import servers, trouble

DAY = "2013-02-01"


@pytest.fixture
def waiting(spec: ModelSpec) -> ModelSpec:
    data = spec.data.model_copy(update={"arrival": "wait", "arrival_hours": 2.0})
    return spec.model_copy(update={"data": data})


def context(key: str | None = DAY, kind: str = "scheduled", *, ago: float = 0, **params: Any) -> Any:
    began = datetime.now(UTC) - timedelta(hours=ago)
    run = SimpleNamespace(partition_key=key, run_type=kind, start_date=began)
    return {"dag_run": run, "params": params}


def task(spec: ModelSpec) -> AwaitPartition:
    return AwaitPartition(task_id="await_partition", spec=spec)


def land(spec: ModelSpec) -> Path:
    path = Path(landing.source_uri(spec.data.source, DAY))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def again(trigger: BaseTrigger) -> Any:
    """The trigger as the triggerer makes it, but looking more often."""
    name, arguments = trigger.serialize()
    module, _, cls = name.rpartition(".")
    often = {k: 0.05 if k in ("pause", "poke_interval") else v for k, v in arguments.items()}
    return getattr(importlib.import_module(module), cls)(**json.loads(json.dumps(often)))


def first(trigger: Any, patience: float = 10) -> TriggerEvent:
    async def run() -> TriggerEvent:
        return await asyncio.wait_for(anext(aiter(trigger.run())), patience)

    return asyncio.run(run())


def test_the_dag_has_it_only_when_the_spec_asks(spec: ModelSpec, waiting: ModelSpec) -> None:
    assert [t.task_id for t in STAGES["data"](spec).tasks] == ["data"]
    dag = STAGES["data"](waiting)
    assert dag.get_task("await_partition").downstream_task_ids == {"data"}
    assert dag.get_task("data").upstream_task_ids == {"await_partition"}
    assert "`await_partition` waits until the file has landed, for at most 2 hours" in (dag.doc_md or "")
    assert waiting.digest == spec.digest  # waiting changes no result: nothing is done again for it


@pytest.mark.parametrize(
    "run",
    [context(kind="backfill"), context(kind="manual"), context(None, "manual", start=DAY, end="2013-02-03")],
    ids=["backfill", "by hand", "range"],
)
def test_only_a_nightly_run_waits(waiting: ModelSpec, run: Any) -> None:
    assert task(waiting).execute(run) == {"waited": False}


def test_what_has_landed_is_not_waited_for(waiting: ModelSpec) -> None:
    path = land(waiting)
    assert task(waiting).execute(context()) == {"waited": False, "uri": str(path)}


def test_what_has_not_landed_is_waited_for_in_the_triggerer(waiting: ModelSpec) -> None:
    with pytest.raises(TaskDeferred) as deferred:
        task(waiting).execute(context(ago=0.5))
    assert timedelta(hours=1.49) < deferred.value.timeout <= timedelta(hours=1.5)
    trigger = again(deferred.value.trigger)
    with pytest.raises(TimeoutError):
        first(trigger, 0.3)
    path = land(waiting)
    event = first(trigger)
    assert task(waiting).resume_execution(
        deferred.value.method_name, {"event": event.payload}, context()
    ) == {
        "waited": True,
        "uri": str(path),
    }


def test_a_folder_has_landed_once_it_is_complete(waiting: ModelSpec) -> None:
    path = land(waiting)
    path.unlink()
    path.mkdir()
    with pytest.raises(TaskDeferred) as deferred:
        task(waiting).execute(context())
    trigger = again(deferred.value.trigger)
    (path / "_temporary").mkdir()
    for name in ("_temporary/part-0.parquet", "part-0.parquet"):
        (path / name).write_bytes(b"x")
    with pytest.raises(TimeoutError):
        first(trigger, 0.3)
    (path / "_SUCCESS").touch()
    first(trigger)
    assert task(waiting).execute(context()) == {"waited": False, "uri": str(path)}


def test_what_does_not_come_is_a_clear_failure(waiting: ModelSpec) -> None:
    failed = {"error": TriggerFailureReason.TRIGGER_TIMEOUT}
    with pytest.raises(
        AirflowSkipException, match=f"{DAY}.* did not land, and nothing of flight_late was published"
    ):
        task(waiting).resume_execution("__fail__", failed, context())
    manifests.write(Manifest(waiting.name, "data", "2013-01-01", {}, {}), 0)
    with pytest.raises(AirflowFailException) as error:
        task(waiting).resume_execution("__fail__", failed, context())
    for part in ("model flight_late", f"partition {DAY}", "did not land within 2 hours", "What to do"):
        assert part in str(error.value)
    with pytest.raises(AirflowFailException, match="did not land"):  # a retry does not begin the hours again
        task(waiting).execute(context(ago=3))
    land(waiting)
    assert task(waiting).resume_execution("__fail__", failed, context())["waited"] is True


def test_on_s3_and_when_s3_is_away(
    waiting: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    monkeypatch.setattr(object_store, "MAX_ATTEMPTS", 1)
    with servers.s3(tmp_path) as url, trouble.between(url) as proxy:
        for name, value in {
            "AWS_ENDPOINT_URL": proxy.url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "PERENNIAL_LANDING": "s3://feed/here",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="feed")
        uri = landing.source_uri(waiting.data.source, DAY)
        with pytest.raises(TaskDeferred) as deferred:
            task(waiting).execute(context())
        assert isinstance(deferred.value.trigger, S3KeyTrigger)
        with pytest.raises(TimeoutError):
            first(again(deferred.value.trigger), 2)
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
        proxy.add("busy", 3, "HEAD")
        event = first(again(deferred.value.trigger), 30)
        assert len(proxy.done) == 3  # S3 was away three times, which ended nothing
        assert task(waiting).resume_execution("landed", {"event": event.payload}, context()) == {
            "waited": True, "uri": uri,
        }  # fmt: skip
        s3.delete_object(Bucket=bucket, Key=key)
        for name in ("_temporary/0/part-0.parquet", "part-0.parquet"):
            s3.put_object(Bucket=bucket, Key=f"{key}/{name}", Body=b"x")
        with pytest.raises(TimeoutError):
            first(again(deferred.value.trigger), 2)
        s3.put_object(Bucket=bucket, Key=f"{key}/_SUCCESS", Body=b"")
        first(again(deferred.value.trigger), 30)
        assert task(waiting).execute(context())["waited"] is False
        proxy.add("forbidden", 99)
        with pytest.raises(AirflowException, match="cannot be reached"):
            task(waiting).execute(context())


def test_a_query_is_tried_again_until_it_is_ready(
    waiting: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shop.db"
    monkeypatch.setenv("AIRFLOW_CONN_SHOP", f"sqlite:///{path}")

    def queried(**source: str) -> ModelSpec:
        sql = "SELECT * FROM flights WHERE day >= {start} AND day < {end}"
        query = QuerySource(sql=sql, connection="shop", **source)
        return waiting.model_copy(update={"data": waiting.data.model_copy(update={"source": query})})

    rows, loads = queried(), queried(ready="SELECT max(until) >= {end} FROM loads")
    assert "waits until the query is ready, or has rows, for at most 2 hours" in (
        STAGES["data"](rows).doc_md or ""
    )
    with pytest.raises(AirflowFailException, match="there is no such file"):
        task(rows).execute(context())
    with closing(sqlite3.connect(path, isolation_level=None)) as con:
        con.execute("CREATE TABLE flights (day TEXT)")
        con.execute("CREATE TABLE loads (until TEXT)")
        for spec in (rows, loads):
            before = datetime.now(UTC)
            with pytest.raises(AirflowRescheduleException) as later:
                task(spec).execute(context(ago=0.5))
            assert later.value.reschedule_date - before > timedelta(seconds=100)
            with pytest.raises(AirflowRescheduleException) as later:  # not beyond the end of the wait
                task(spec).execute(context(ago=2 - 1 / 3600))
            assert later.value.reschedule_date - before < timedelta(seconds=60)
            assert task(spec).execute(context(kind="backfill")) == {"waited": False}
            with pytest.raises(AirflowSkipException, match="nothing of flight_late was published"):
                task(spec).execute(context(ago=3))
        manifests.write(Manifest(waiting.name, "data", "2013-01-01", {}, {}), 0)
        with pytest.raises(AirflowFailException, match="connection shop has no rows within 2 hours"):
            task(rows).execute(context(ago=3))
        with pytest.raises(AirflowFailException, match="connection shop is not ready within 2 hours"):
            task(loads).execute(context(ago=3))
        con.execute(f"INSERT INTO flights VALUES ('{DAY} 10:00:00')")
        assert task(rows).execute(context())["query"].endswith("connection shop")
        con.execute("INSERT INTO loads VALUES ('2013-02-02')")
        assert task(loads).execute(context(ago=3))["query"].endswith("connection shop")
        con.execute("BEGIN EXCLUSIVE")  # another process writes: time heals that
        monkeypatch.setattr("perennial.databases._sqlite.BUSY_SECONDS", 0.1)
        with pytest.raises(AirflowRescheduleException):
            task(rows).execute(context())
        with pytest.raises(AirflowException, match="locked"):
            task(rows).execute(context(ago=3))
