"""What Airflow loads of Perennial: timetables, the console, the check of requested runs, the login."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from perennial_airflow.timetables import DailyPartitions, EndedPartitions, PublishedPartitions


class PerennialPlugin(AirflowPlugin):
    """Registers the timetables of the DAGs, the console and the check of requested runs."""

    name = "perennial"
    timetables = [DailyPartitions, EndedPartitions, PublishedPartitions]  # noqa: RUF012  (Airflow's own shape)

    @property
    def fastapi_apps(self) -> list[Any]:  # type: ignore[override]
        """The console: a property, because only the API server may pay for importing Airflow's web security."""
        from perennial_airflow.web.console import PREFIX, create_app

        return [{"app": create_app(), "url_prefix": PREFIX, "name": "Perennial console"}]

    @property
    def external_views(self) -> list[Any]:  # type: ignore[override]
        """The console's places in Airflow's UI; a property, because they depend on the configuration."""
        from perennial_airflow.web import links

        return links.external_views()

    @property
    def fastapi_root_middlewares(self) -> list[Any]:  # type: ignore[override]
        """The check of requested runs, the console's way to the REST API, and the way to the login page.

        The one that comes first is the innermost: what the console asks of the API is checked as well.
        """
        from perennial_airflow.web.api_access import ApiAccess
        from perennial_airflow.web.login_redirect import LoginRedirect
        from perennial_airflow.web.run_checks import RunChecks

        return [
            {"middleware": RunChecks, "args": [], "kwargs": {}, "name": "Perennial run checks"},
            {"middleware": ApiAccess, "args": [], "kwargs": {}, "name": "Perennial API access"},
            {"middleware": LoginRedirect, "args": [], "kwargs": {}, "name": "Perennial login"},
        ]
