"""The whole loop with lake and landing area on S3; the locks are tested in test_locks.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perennial.alerting import incidents
from perennial.core import dates
from perennial.core.errors import DataError, StorageError
from perennial.modeling import registry
from perennial.steps import dispatch
from perennial.storage import delta_tables, duckdb_session, generations, ledger, manifests, object_store
from support import lake, processes, toys


def test_several_tasks_tell_of_incidents(bucket: Any, tmp_path: Path) -> None:
    hook = {"name": "hook", "kind": "webhook", "url": "http://127.0.0.1:9/"}
    spec = toys.model(tmp_path / "models", "toy", alerts={"channels": [hook]})
    names = [f"failure:task{i}" for i in range(3)]
    tasks = [processes.start(processes.incident, str(spec.folder), toys.LAST, ("drift", n)) for n in names]
    assert processes.wait(*tasks) == [0] * 3
    log = incidents.read_log("toy")
    assert {i.signal for i in log.open} == {"drift", *names}
    assert sorted(n.signal for n in log.outbox) == sorted(["drift", *names])
    assert incidents.deliver_notices(spec, lambda *_: True) == 0
    assert incidents.read_log("toy").outbox == []


def test_the_loop_works_on_s3(
    bucket: Any, mlflow_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    spec = toys.model(tmp_path / "models", toys.unique())
    toys.land(spec)
    published = dispatch.run("data", spec, start=toys.FIRST, end=toys.LAST)
    assert (published["rows_in"], published["rows_out"]) == (toys.DAYS * toys.ROWS,) * 2
    assert dispatch.run("data", spec, start=toys.LAST)["status"] == "unchanged"

    trained = dispatch.run("train", spec, as_of=toys.LAST)
    assert trained["gate"]["passed"], trained["gate"]["reasons"]
    assert dispatch.run("promote", spec, as_of=toys.LAST, actor="test")["promoted"]
    assert ledger.verify(spec.name) == 2

    scored = dispatch.run("score", spec, start=dates.add_days(toys.LAST, -7), end=toys.LAST)
    assert scored["rows_out"] == 8 * toys.ROWS
    assert len(toys.content_of("predictions", spec.name)) == 8 * toys.ROWS
    assert dispatch.run("score", spec, start=toys.LAST)["status"] == "unchanged"

    seen = dispatch.run("monitor", spec, as_of=toys.LAST)
    assert seen["verdict"] == "ok", seen["reason"]
    assert "</html>" in object_store.read_text(seen["report"])
    assert "retrain" in dispatch.run("decide", spec, as_of=toys.LAST, actor="test", backfill=False)

    keys = [o.key for o in bucket.objects.all()]
    assert keys
    assert all(k.startswith(("some where/lake/", "landing/")) for k in keys)
    locks = [o for o in bucket.objects.all() if o.key.endswith(".lock")]
    assert all(json.loads(o.get()["Body"].read())["until"] == 0 for o in locks), "every lock is free again"
    assert registry.get_champion(spec) is not None


def test_partitions_are_replaced_and_versions_stay(bucket: Any) -> None:
    import pyarrow as pa

    uri = delta_tables.table_uri("published", "toy")
    assert delta_tables.version(uri) is None

    def put(day: str, value: int) -> int:
        return delta_tables.replace(uri, pa.table({"id": [value], "partition_date": [day]}), day)

    first = put("2024-01-01", 1)
    put("2024-01-02", 2)
    put("2024-01-01", 3)
    assert sorted(r["id"] for r in lake.read_table(uri).to_pylist()) == [2, 3]
    assert lake.read_table(uri, first)["id"].to_pylist() == [1]
    assert lake.read_table(uri, start="2024-01-02")["id"].to_pylist() == [2]


def test_types_are_converted_and_a_new_generation_begins(bucket: Any) -> None:
    import pyarrow as pa

    uri = delta_tables.table_uri("published", "toy")
    before = delta_tables.replace(uri, pa.table({"id": [7], "partition_date": ["2024-01-01"]}), "2024-01-01")
    wider = pa.schema([("id", pa.float64()), ("partition_date", pa.string())])
    assert generations.exact(uri, wider, ["id"])
    generations.widen(uri, wider, ["id"], "wider")
    delta_tables.replace(uri, pa.table({"id": [0.75], "partition_date": ["2024-01-02"]}), "2024-01-02")
    assert sorted(lake.read_table(uri)["id"].to_pylist()) == [0.75, 7.0]
    assert lake.read_table(uri, before)["id"].type == pa.int64()
    with duckdb_session.connect(threads=1) as con:
        columns = {"id": "DOUBLE", "more": "VARCHAR"}
        assert duckdb_session.create_view(con, "__t", uri, columns=columns)
        assert con.execute("SELECT count(*), count(more) FROM __t").fetchall() == [(2, 0)]
    assert generations.start(uri, wider, {}, "why") == 2
    assert lake.find_table(uri) is None


def test_writers_at_once_lose_nothing(bucket: Any) -> None:
    uri = delta_tables.table_uri("published", "toy")
    days = dates.dates("2024-01-01", "2024-01-04")
    writers = [processes.start(processes.write_ids, uri, day, n, 1) for n, day in enumerate(days)]
    assert processes.wait(*writers) == [0] * 4
    assert delta_tables.partitions(uri) == days


def test_small_files(bucket: Any) -> None:
    place = f"s3://{bucket.name}/a/b c/x.json"
    assert not object_store.exists(place)
    with pytest.raises(FileNotFoundError):
        object_store.read_text(place)
    object_store.write_text(place, "ü")
    assert object_store.read_text(place) == "ü"
    assert object_store.exists(place)
    assert manifests.read("toy", "data", "2024-01-01") is None


def test_a_folder_is_emptied_of_its_files(bucket: Any) -> None:
    root = f"s3://{bucket.name}/emptied"
    for name in ("a/x.json", "a/y.ubj", "ab.json"):
        object_store.write_text(f"{root}/{name}", "1")
    for _ in range(2):
        object_store.delete_files(f"{root}/a")
        assert [object_store.exists(f"{root}/{n}") for n in ("a/x.json", "a/y.ubj", "ab.json")] == [
            False,
            False,
            True,
        ]


def test_a_bucket_that_is_not_there_is_told(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa

    monkeypatch.setenv("PERENNIAL_LAKE", "s3://no-such-bucket/lake")
    with pytest.raises(StorageError, match="What to do"):
        object_store.write_text("s3://no-such-bucket/lake/x.json", "x")
    with pytest.raises(StorageError, match="What to do"):
        delta_tables.replace(
            delta_tables.table_uri("published", "toy"),
            pa.table({"id": [1], "partition_date": ["2024-01-01"]}),
            "2024-01-01",
        )


def test_a_partition_that_has_not_landed_is_told(bucket: Any, tmp_path: Path) -> None:
    spec = toys.model(tmp_path / "models", toys.unique())
    with pytest.raises(DataError, match="has not landed") as error:
        dispatch.run("data", spec, start=toys.FIRST)
    assert error.value.partition == toys.FIRST
