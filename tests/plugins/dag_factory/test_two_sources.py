"""A feature table of two sources, by Airflow's own scheduler code on a real metadata database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perennial.core.settings import ROOT
from support import toys
from support.databases import airflow_metadata
from support.feeds import history_table

NIGHT, NEXT_NIGHT = "2024-01-02", "2024-01-03"


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Airflow's metadata, with the DAGs of two models and of a table of both as the DAG processor writes them."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session

    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path))
    for name in ("toy", "other"):
        toys.model(tmp_path, name)
    history_table.write(
        tmp_path,
        sql=history_table.SQL.replace("avg(y)", "avg(x)"),
        sources=[{"model": "toy"}, {"model": "other"}],
    )
    airflow_metadata.create()
    DagBundlesManager().sync_bundles_to_db()
    bag = DagBag(str(ROOT / "dags" / "models.py"), bundle_name="dags-folder")
    assert not bag.import_errors and "features.place_history" in bag.dags
    sync_bag_to_db(bag, "dags-folder", None)
    with create_session() as session:
        table = session.get(DagModel, "features.place_history")
        table.is_paused = False
        session.flush()
        yield session


def published(session: Any, model: str, key: str) -> None:
    """What Airflow does when the data task of a model has ended."""
    from airflow.assets.manager import asset_manager
    from airflow.models.asset import AssetModel
    from sqlalchemy import select

    asset = session.scalar(select(AssetModel).where(AssetModel.name == f"data/{model}"))
    asset_manager.register_asset_change(asset=asset, session=session, partition_key=key)
    session.flush()


def created(session: Any) -> list[str]:
    """The partitions of the runs of the table, after the scheduler looked for partitions that are complete."""
    from airflow.jobs.job import Job
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
    from airflow.models.dagrun import DagRun
    from sqlalchemy import select

    SchedulerJobRunner(Job())._create_dagruns_for_partitioned_asset_dags(session)
    session.flush()
    keys = session.scalars(select(DagRun.partition_key).where(DagRun.dag_id == "features.place_history"))
    return sorted(map(str, keys))


def test_a_partition_is_computed_once_both_sources_have_published_it(database: Any) -> None:
    published(database, "toy", NIGHT)
    published(database, "other", NEXT_NIGHT)
    assert created(database) == [], "no partition is there of both"
    published(database, "other", NIGHT)
    assert created(database) == [NIGHT]
    published(database, "toy", NEXT_NIGHT)
    assert created(database) == [NIGHT, NEXT_NIGHT]
