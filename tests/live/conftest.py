"""One real Airflow and one real MLflow for all live tests, in a home and a user folder of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from rich.console import Console

from perennial.stack import processes, servers, story
from perennial.stack.board import Board
from perennial.stack.config import Stack
from support import servers as ports
from support import toys
from support.live import BROKEN, PLAN, Live


@pytest.fixture(scope="session")
def live_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Both servers, with one toy model and one broken model beside the sample's; ended whatever happens."""
    root = tmp_path_factory.mktemp("live stack")  # with a space, as people have them
    home, user, models = root / "home", root / "user", root / "models"
    for folder in (home, user, models / BROKEN):
        folder.mkdir(parents=True)
    (models / BROKEN / "model.yaml").write_text(f"name: {BROKEN}\ntask: clairvoyance\n")
    before = dict(os.environ)
    # where the user's own folders are is left to the stack to say
    for name in [n for n in os.environ if n.startswith(("PERENNIAL_", "XDG_", "MLFLOW_", "AIRFLOW"))]:
        del os.environ[name]
    os.environ.update(
        HOME=str(user), PERENNIAL_HOME=str(home), PERENNIAL_MODELS=str(models), PERENNIAL_THREADS="1"
    )
    free = [ports.free_port() for _ in range(5)]
    config = Stack(home, free[0], free[1], (free[2], free[3]), free[4])
    try:
        no_retries = {"data": {"retries": 0}, "score": {"retries": 0}}
        # with an end in the past nothing runs but what the tests start
        spec = toys.model(models, PLAN.model, limits=no_retries, schedule={"end": "2024-01-31"})
        toys.land(spec)
        log = root / "board.txt"
        with Board(Console(file=log.open("a"), width=200)) as board:
            servers.up(config, board)
            airflow = servers.client(config)
            story.await_dags(airflow, (PLAN,), board)
        os.environ.clear()
        os.environ.update(before)
        yield Live(config, airflow, spec, user, log)
        airflow.close()
    finally:
        os.environ.clear()
        os.environ.update(before)
        processes.stop(home, servers.NAMES, patience=20)
        assert processes.members(home) == []


@pytest.fixture
def live(live_stack: Live, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """The running stack, with this process looking at the same lake, models and MLflow as its tasks."""
    monkeypatch.setenv("PERENNIAL_HOME", str(live_stack.config.home))
    monkeypatch.setenv("PERENNIAL_MODELS", str(live_stack.spec.folder.parent))
    with story.same_environment(live_stack.config):
        yield live_stack
