"""The step with its landing area and its lake on S3."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest

from perennial.core.errors import DataError

DAY, NEXT = "2020-03-01", "2020-03-02"


@pytest.fixture
def bucket(place: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "PERENNIAL_LAKE": "s3://lake/it",
        "PERENNIAL_LANDING": "s3://feed/here",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3 = boto3.client("s3")
    for name in ("lake", "feed"):
        s3.create_bucket(Bucket=name)
    yield s3
    server.stop()


def put(s3: Any, name: str, table: Any) -> None:
    import pyarrow.parquet as pq

    content = io.BytesIO()
    pq.write_table(table, content)
    s3.put_object(Bucket="feed", Key=f"here/{name}", Body=content.getvalue())


def test_a_night_and_its_labels(place: Any, bucket: Any, make_rows: Any) -> None:
    import pyarrow as pa

    put(bucket, f"rows/{DAY}.parquet", make_rows())
    put(bucket, f"rows/{NEXT}.parquet", make_rows(NEXT, amount=[-1.0] + [1.0] * 39))
    put(
        bucket,
        f"labels/{DAY}.parquet",
        pa.table({"id": [f"{DAY}-{i}" for i in range(40)], "value": [2.0] * 40}),
    )
    assert place.run()["rows_out"] == 40
    result = place.run(NEXT)
    assert (result["rows_out"], result["quarantined"], result["labels"]) == (39, 1, 40)
    assert (
        len(place.table()) == 79 and len(place.table("labels")) == 40 and len(place.table("quarantine")) == 1
    )
    assert place.run(DAY, NEXT)["status"] == "unchanged"
    assert result["docs"] == [f"s3://lake/it/reports/small/validation/{NEXT}.html"]
    page = (
        bucket.get_object(Bucket="lake", Key=f"it/reports/small/validation/{NEXT}.html")["Body"]
        .read()
        .decode()
    )
    assert "1 in quarantine" in page
    assert not list((place.folder / "home" / "tmp").glob("data-*")), "copies of the feed's files are gone"


def test_text_files_and_missing_ones(place: Any, bucket: Any) -> None:
    place.changes = {"source": "{landing}/rows/{date}.csv"}
    with pytest.raises(DataError, match=r"s3://feed/here/rows/2020-03-01\.csv has not landed"):
        place.run()
    header = "id,at,amount,count,kind,ok,on,phone\n"
    body = header + "".join(f"r{i},2020-03-01 10:00:00,1.5,{i},a,true,2020-03-01,1\n" for i in range(5))
    bucket.put_object(Bucket="feed", Key=f"here/rows/{DAY}.csv", Body=body.encode())
    assert place.run()["rows_out"] == 5
