"""The console in Airflow's UI with what it does there, the addresses of pages, and the check of requested runs.

All but `links` import FastAPI and Airflow's web security: only the API server imports them.
"""

__all__ = ["api_access", "console", "links", "login_redirect", "operations", "run_checks"]
