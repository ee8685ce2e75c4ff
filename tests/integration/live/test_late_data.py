"""What people are told, by a real Airflow: of data that does not come, and that it came."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from perennial.alerting import incidents
from support import toys
from support.live import Live, await_

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(600)]
NAME = "toy_late"
DAG = f"{NAME}.data"


def test_data_that_does_not_come_is_told_while_it_is_waited_for(live: Live) -> None:
    """The nightly run of a new model starts with Airflow; it may take a minute; the feed is silent at first."""
    spec = live.others[NAME]
    night = spec.schedule.start.isoformat()

    def notices() -> list[dict[str, Any]]:
        return [t for t in live.messages if t.get("model") == NAME and t.get("signal") == "deadline:data"]

    await_(notices, 240, lambda: live.airflow.runs(DAG))
    assert len(notices()) == 1, notices()
    (told,) = notices()
    assert told["title"] == f"{NAME}: deadline:data is bad, partition {night}"
    assert "is not published 1 minutes after its run was queued; the run is running" in told["reason"]
    assert told["log"].endswith(f"/dags/{DAG}/runs/{quote(told['run_id'])}")
    toys.land(spec, night, 1)
    await_(lambda: len(notices()) > 1, 200, lambda: live.airflow.runs(DAG))
    assert notices()[1]["title"] == f"{NAME}: deadline:data recovered, partition {night}"
    assert incidents.read_log(NAME).open == []
    live.airflow.trigger("perennial.daily_summary")
    ended = f"Closed incidents\n- {NAME}: deadline:data, bad from {night} to {night}"
    await_(lambda: any(ended in t["text"] for t in live.messages), 120, lambda: live.messages)
