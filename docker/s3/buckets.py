"""Make the buckets that are named as arguments, where they are missing; AWS's own variables say where."""

from __future__ import annotations

import sys

import boto3


def main(names: list[str]) -> None:
    """Make what is missing."""
    s3 = boto3.client("s3")
    there = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    for name in names:
        if name not in there:
            s3.create_bucket(Bucket=name)
        print(f"bucket {name}: {'there' if name in there else 'made'}")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
