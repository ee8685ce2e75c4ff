"""The trigger that waits for a file, or a folder of part files, in a folder.

Airflow stores its import path: it stays in this module. The task that waits is `sensors.partition_arrival`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from perennial.core.errors import StorageError
from perennial.storage import landing


class LandedTrigger(BaseTrigger):
    """Fires once when a file has landed. An error of the disk is logged, and the next check tries again.

    Args:
        uri: path of the file, or of the complete folder in its place.
        pause: seconds between two checks.
    """

    def __init__(self, uri: str, pause: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow does not annotate its arguments
        self.uri, self.pause = uri, pause

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Import path and arguments, from which the triggerer makes it."""
        return f"{__name__}.{type(self).__name__}", {"uri": self.uri, "pause": self.pause}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Check until the file has landed. The task's own timeout bounds the wait."""
        while True:
            try:
                if await asyncio.to_thread(landing.has_landed, self.uri):
                    break
            except StorageError as error:
                self.log.warning("%s", error.cause)
            await asyncio.sleep(self.pause)
        yield TriggerEvent({"status": "success"})
