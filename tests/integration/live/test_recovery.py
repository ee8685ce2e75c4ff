"""A stack whose servers were killed starts again, and nothing of the dead one stays behind."""

from __future__ import annotations

import psutil
import pytest

from perennial.core import dates
from perennial.local_stack import demo, processes, servers
from perennial.local_stack.sample.plan import Plan
from perennial.storage import manifests
from support import toys
from support.live import PLAN, Live

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_loop_goes_on_after_airflow_was_killed(live: Live) -> None:
    with live.board() as board:
        demo.run_plans(live.config, (PLAN,), board)
    before = {process.pid for process in processes.stack_processes(live.config.home)}
    leader = processes.find_server("airflow", live.config.state)
    assert leader
    leader.kill()
    psutil.wait_procs([leader], timeout=10)

    night = dates.add_days(PLAN.latest, 1)
    toys.land(live.spec, night, 1)
    longer = Plan(PLAN.model, PLAN.first, PLAN.trained_until, night, False)
    with live.board() as board:
        servers.start_all(live.config, board)
        demo.run_plans(live.config, (longer,), board)
    assert manifests.read(PLAN.model, "score", night)
    assert "a run that was killed" in live.log.read_text()
    after = {process.pid for process in processes.stack_processes(live.config.home)}
    assert not before & after
