"""The data step with its landing area and its lake on S3."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.core.errors import DataError
from perennial.storage import landing

DAY, NEXT = "2020-03-01", "2020-03-02"
LAKE = "some where/lake"


def put(bucket: Any, name: str, table: pa.Table) -> None:
    content = io.BytesIO()
    pq.write_table(table, content)
    bucket.put_object(Key=f"landing/{name}", Body=content.getvalue())


def test_a_partition_and_its_labels(small_model: Any, bucket: Any, make_rows: Any) -> None:
    put(bucket, f"rows/{DAY}.parquet", make_rows())
    put(bucket, f"rows/{NEXT}.parquet", make_rows(NEXT, amount=[-1.0] + [1.0] * 39))
    put(
        bucket,
        f"labels/{DAY}.parquet",
        pa.table({"id": [f"{DAY}-{i}" for i in range(40)], "value": [2.0] * 40}),
    )
    assert small_model.run()["rows_out"] == 40
    result = small_model.run(NEXT)
    assert (result["rows_out"], result["quarantined"], result["labels"]) == (39, 1, 40)
    assert (
        len(small_model.table()) == 79
        and len(small_model.table("labels")) == 40
        and len(small_model.table("quarantine")) == 1
    )
    assert small_model.run(DAY, NEXT)["status"] == "unchanged"
    doc = f"reports/small/validation/{NEXT}.html"
    assert result["docs"] == [f"s3://{bucket.name}/{LAKE}/{doc}"]
    page = bucket.Object(f"{LAKE}/{doc}").get()["Body"].read().decode()
    assert "1 in quarantine" in page
    assert not list((small_model.folder / "home" / "tmp").glob("data-*")), (
        "copies of the feed's files are gone"
    )


def test_text_files_and_missing_ones(small_model: Any, bucket: Any) -> None:
    small_model.changes = {"source": "{landing}/rows/{date}.csv"}
    with pytest.raises(DataError, match=r"landing/rows/2020-03-01\.csv has not landed"):
        small_model.run()
    header = "id,at,amount,count,kind,ok,on,phone\n"
    body = header + "".join(f"r{i},2020-03-01 10:00:00,1.5,{i},a,true,2020-03-01,1\n" for i in range(5))
    bucket.put_object(Key=f"landing/rows/{DAY}.csv", Body=body.encode())
    assert small_model.run()["rows_out"] == 5


def test_a_folder_of_part_files(small_model: Any, bucket: Any, make_rows: Any) -> None:
    table = make_rows()
    for i in (3, 1, 2):
        put(bucket, f"rows/{DAY}.parquet/part-0000{i}.snappy.parquet", table.slice(10 * i, 10))
    bucket.put_object(Key=f"landing/rows/{DAY}.parquet/_temporary/0/task/part-00000.parquet", Body=b"PAR1")
    with pytest.raises(
        DataError, match="has not landed: the folder has no _SUCCESS, and a folder _temporary"
    ):
        small_model.run()
    bucket.Object(f"landing/rows/{DAY}.parquet/_temporary/0/task/part-00000.parquet").delete()
    put(bucket, f"rows/{DAY}.parquet/part-00000.snappy.parquet", table.slice(0, 10))
    bucket.put_object(Key=f"landing/rows/{DAY}.parquet/_SUCCESS", Body=b"")
    assert list(landing.list_landed(small_model.spec.data.source)) == [DAY]
    assert small_model.run()["rows_out"] == 40
    assert small_model.run()["status"] == "unchanged"
    put(bucket, f"rows/{NEXT}.parquet/part-00000.parquet", make_rows(NEXT))
    with pytest.raises(DataError, match="no _SUCCESS, which the folders beside it have"):
        small_model.run(NEXT)
    assert list(landing.list_landed(small_model.spec.data.source)) == [DAY]
    put(bucket, f"rows/{DAY}.parquet/part-00004.parquet", make_rows(n=50).slice(40, 10))
    assert small_model.run()["rows_out"] == 50
