"""An S3 server, a bucket for each test, and a proxy that injects faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import servers, toys, trouble
from support.small_model import make_rows, small_model

__all__ = ["make_rows", "small_model"]


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.s3(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture
def bucket(s3_url: str, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty bucket; lake and landing area are in it."""
    import boto3

    for name, value in (
        ("AWS_ENDPOINT_URL", s3_url),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    name = toys.unique("bucket").replace("_", "-")
    monkeypatch.setenv("PERENNIAL_LAKE", f"s3://{name}/some where/lake/")
    monkeypatch.setenv("PERENNIAL_LANDING", f"s3://{name}/landing")
    made = boto3.resource("s3").Bucket(name)
    made.create()
    return made


@pytest.fixture
def proxy(s3_url: str, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[trouble.Proxy]:
    """A proxy between this process and the bucket; `bucket` itself does not use it."""
    with trouble.between(s3_url) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
        yield found
