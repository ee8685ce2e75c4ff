"""The landing area: templates of paths."""

from __future__ import annotations

from pathlib import Path

from perennial.storage import landing


def test_templates(empty_home: Path) -> None:
    folder = str(empty_home / "landing")
    assert landing.source_uri("{landing}/a/{date}.parquet", "2024-03-04") == f"{folder}/a/2024-03-04.parquet"
    assert (
        landing.source_uri("{landing}/{year}/{month}/{day}.csv", "2024-03-04") == f"{folder}/2024/03/04.csv"
    )
    assert landing.source_uri("s3://b/places.parquet") == "s3://b/places.parquet"
