"""The trigger that waits for a file, or a folder of part files, on S3.

It is Amazon's own, which does not block the triggerer's other triggers, and looks for folders, too. Airflow stores its
import path: it stays in this module. It is not in `arrival`, because Amazon's provider takes a second to import.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any, Self

from airflow.providers.amazon.aws.triggers.s3 import S3KeyTrigger
from airflow.triggers.base import TriggerEvent

from perennial.storage import landing, object_store


class LandedOnS3(S3KeyTrigger):
    """The trigger of Amazon's S3KeySensor, except that an error of S3 does not end the wait.

    The task's own timeout bounds the wait.
    """

    @classmethod
    def at(cls, uri: str, pause: float) -> Self:
        """The trigger for one file.

        Args:
            uri: ``s3://bucket/key``.
            pause: seconds between two checks.
        """
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return cls(
            bucket_name=bucket,
            bucket_key=key,
            aws_conn_id=None,
            poke_interval=pause,
            region_name=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
            botocore_config={
                "connect_timeout": 5,
                "read_timeout": object_store.TIMEOUT_SECONDS,
                "retries": {"mode": "standard", "total_max_attempts": object_store.MAX_ATTEMPTS},
            },
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Import path and arguments, from which the triggerer makes it; Amazon's own method names Amazon's class."""
        return f"{__name__}.{type(self).__name__}", super().serialize()[1]

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Check until the file exists, or a complete folder of part files."""
        while True:
            try:
                async with await self.hook.get_async_conn() as client:
                    while not await self._has_landed(client):
                        await asyncio.sleep(self.poke_interval)
                break
            except Exception as error:
                self.log.warning("s3://%s/%s cannot be checked: %s", self.bucket_name, self.bucket_key, error)
            await asyncio.sleep(self.poke_interval)
        yield TriggerEvent({"status": "success"})

    async def _has_landed(self, client: Any) -> bool:
        if await self.hook.check_key_async(client, self.bucket_name, self.bucket_key, wildcard_match=False):
            return True
        begun = await client.list_objects_v2(Bucket=self.bucket_name, Prefix=f"{self.bucket_key}/", MaxKeys=1)
        if not begun.get("KeyCount"):
            return False
        # Only while a folder is being written; what tells that it is complete is the same as in the step.
        return await asyncio.to_thread(landing.has_landed, f"s3://{self.bucket_name}/{self.bucket_key}")
