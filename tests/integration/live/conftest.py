"""One real Airflow and one real MLflow for all live tests, in separate working and user folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from perennial.core import dates
from perennial.local_stack import demo, processes, servers
from perennial.local_stack.config import Stack, environment
from perennial.local_stack.progress import ProgressDisplay
from perennial.spec.model_spec import ModelSpec
from support import servers as ports
from support import toys
from support.live import BROKEN, FEEDS, PLAN, Live, feed_model, webhook

#: With an end in the past only the tests start runs.
PAST = {"start": toys.FIRST, "end": "2024-01-31"}


def models(root: Path, hook: str) -> dict[str, ModelSpec]:
    """Make the models of the tests, before Airflow starts: it searches for new ones only once a minute.

    Args:
        hook: address of the webhook of ``toy_late`` and ``toy_approval``.
    """
    channel = {"name": "hook", "kind": "webhook", "url": hook, "daily_summary": True}
    channels = {"channels": [channel | {"decisions": ["approval", "declined"]}]}
    aging = {"triggers": ["age"], "max_age": "1 day", "cooldown": "0 days"}
    no_retries = {"data": {"retries": 0}, "score": {"retries": 0}}
    quick: dict[str, Any] = {"schedule": PAST, "limits": no_retries, "training": {"rounds": 5}}
    # the next night is 22 hours away: none comes while the tests run
    due = datetime.now(UTC) - timedelta(hours=2)
    found = [
        toys.model(root, PLAN.model, limits=no_retries, schedule=PAST, training={"refit": True}),
        toys.model(root, "toy_approval", retraining=aging | {"mode": "approval"}, alerts=channels, **quick),
        toys.model(root, "toy_eager", retraining=aging, **quick),
        toys.model(root, "toy_backfill", **quick),
        toys.model(root, "toy_console", **quick),
        toys.model(
            root, "toy_drift", schedule=PAST | {"monitor": "0 6 * * *"}, limits=no_retries,
            training={"holdout": "8 days"},
        ),
        toys.model(root, "toy_runs", **quick),
        toys.model(root, "toy_promotion", gate={"approval": {"who": ["admin"], "hours": 5}}, **quick),
        # its first nightly run starts with Airflow; it may take a minute
        toys.model(
            root, "toy_late", data={"arrival": "wait"}, alerts=channels,
            limits={"data": {"retries": 0, "deadline_minutes": 1}},
            schedule={
                "start": (due.date() - timedelta(days=1)).isoformat(),
                "data": f"{due.minute} {due.hour} * * *",
            },
        ),
    ]  # fmt: skip
    found += [feed_model(root, name, ended=True) for name in FEEDS]
    return {spec.name: spec for spec in found}


@pytest.fixture(scope="package")
def live_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Both servers, with toy models and one broken model in addition to the sample's.

    They are stopped after the last test of this folder, not of the session: idle, they take a part of a core.
    """
    root = tmp_path_factory.mktemp("live stack")  # with a space, as users' folders may have
    home, user, folder = root / "home", root / "user", root / "models"
    for made in (home, user, folder / BROKEN):
        made.mkdir(parents=True)
    (folder / BROKEN / "model.yaml").write_text(f"name: {BROKEN}\ntask: clairvoyance\n")
    before = dict(os.environ)
    # the stack itself sets these folders
    for name in [n for n in os.environ if n.startswith(("PERENNIAL_", "XDG_", "MLFLOW_", "AIRFLOW"))]:
        del os.environ[name]
    os.environ.update(
        HOME=str(user), PERENNIAL_HOME=str(home), PERENNIAL_MODELS=str(folder), PERENNIAL_THREADS="1"
    )
    free = [ports.free_port() for _ in range(5)]
    config = Stack(home, free[0], free[1], (free[2], free[3]), free[4])
    try:
        with webhook() as (address, messages):
            specs = models(folder, address)
            toys.land(specs[PLAN.model], days=len(dates.dates(PLAN.first, PLAN.latest)))
            log = root / "board.txt"
            with ProgressDisplay(Console(file=log.open("a"), width=200)) as board:
                servers.start_all(config, board)
                airflow = servers.client(config)
                demo.await_dags(airflow, (PLAN,), board)
            os.environ.clear()
            os.environ.update(before)
            yield Live(config, airflow, specs.pop(PLAN.model), specs, user, log, messages)
            airflow.close()
    finally:
        os.environ.clear()
        os.environ.update(before)
        processes.stop(home, patience=5)
        assert processes.stack_processes(home) == []


@pytest.fixture
def live(live_stack: Live, monkeypatch: pytest.MonkeyPatch) -> Live:
    """The running stack, with this process looking at the same lake, models and MLflow as its tasks."""
    monkeypatch.setenv("PERENNIAL_HOME", str(live_stack.config.home))
    monkeypatch.setenv("PERENNIAL_MODELS", str(live_stack.spec.folder.parent))
    for name, value in environment(live_stack.config).items():
        monkeypatch.setenv(name, value)
    return live_stack


@pytest.fixture
def champion(live: Live) -> Iterator[Any]:
    """Makes the first champion of a model, without Airflow; done once."""
    from perennial.steps import dispatch
    from perennial.storage import ledger

    def make(name: str) -> ModelSpec:
        spec = live.others[name]
        if not ledger.records(name):
            toys.publish(spec)
            dispatch.run("train", spec, as_of=PLAN.trained_until)
            assert dispatch.run("promote", spec, as_of=PLAN.trained_until, actor="test")["promoted"]
        return spec

    return make
