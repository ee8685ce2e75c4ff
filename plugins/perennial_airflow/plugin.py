"""What Airflow loads of Perennial: timetables, and the pages that serve reports."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from perennial_airflow.timetables import DailyPartitions, PublishedPartitions


class PerennialPlugin(AirflowPlugin):
    """Registers the timetables of the DAGs and the web application of the report pages."""

    name = "perennial"
    timetables = [DailyPartitions, PublishedPartitions]  # noqa: RUF012  (Airflow's own shape)

    @property
    def fastapi_apps(self) -> list[Any]:  # type: ignore[override]
        """The report pages: a property, because only the API server may pay for importing Airflow's web security."""
        from perennial_airflow.web.reports import PREFIX, create_app

        return [{"app": create_app(), "url_prefix": PREFIX, "name": "Perennial reports"}]
