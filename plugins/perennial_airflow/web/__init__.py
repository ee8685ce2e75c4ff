"""Pages that the API server adds to Airflow's UI, and the addresses of pages.

`reports` imports FastAPI and Airflow's web security: only the API server imports it.
"""

__all__ = ["links", "reports"]
