"""Waits for a file on S3 by Amazon's own trigger, which asks without blocking the triggerer's other waits."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any, Self

from airflow.providers.amazon.aws.triggers.s3 import S3KeyTrigger
from airflow.triggers.base import TriggerEvent

from perennial.storage import object_store


class LandedOnS3(S3KeyTrigger):
    """As the trigger of S3KeySensor, but S3 being away does not end the wait: how long at most is the task's to say."""

    @classmethod
    def at(cls, uri: str, pause: float) -> Self:
        """One for the file ``uri``, with ``pause`` seconds between two looks."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return cls(
            bucket_name=bucket,
            bucket_key=key,
            aws_conn_id=None,
            poke_interval=pause,
            region_name=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
            botocore_config={
                "connect_timeout": 5,
                "read_timeout": object_store.PATIENCE,
                "retries": {"mode": "standard", "total_max_attempts": object_store.ATTEMPTS},
            },
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What the triggerer makes it from; Amazon's own names Amazon's class."""
        return f"{__name__}.{type(self).__name__}", super().serialize()[1]

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until it is there."""
        while True:
            async for event in super().run():
                if event.payload["status"] != "error":
                    yield event
                    return
                self.log.warning("s3://%s/%s cannot be asked for: %s", self.bucket_name, self.bucket_key,
                                 event.payload["message"])  # fmt: skip
            await asyncio.sleep(self.poke_interval)
