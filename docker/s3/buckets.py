"""Create the buckets named as arguments if they are missing; the usual AWS variables name the server."""

from __future__ import annotations

import sys

import boto3


def main(names: list[str]) -> None:
    """Create the missing buckets."""
    s3 = boto3.client("s3")
    there = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    for name in names:
        if name not in there:
            s3.create_bucket(Bucket=name)
        print(f"bucket {name}: {'exists' if name in there else 'created'}")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
