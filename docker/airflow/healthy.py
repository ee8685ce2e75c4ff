"""Ends with 0 when the named component of Airflow is healthy: metadatabase, scheduler, dag_processor or triggerer.

The API server is asked, which knows all heartbeats: `airflow jobs check` would cost four seconds of CPU each time.
``AIRFLOW_HEALTH_URL`` says where the server is, if not in this container.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request


def main(component: str) -> None:
    """Ask; ends with 1 and the reason when the component is not healthy."""
    base = os.environ.get("AIRFLOW_HEALTH_URL", "http://127.0.0.1:8080").rstrip("/")
    try:
        with urllib.request.urlopen(f"{base}/api/v2/monitor/health", timeout=4) as answer:
            status = json.load(answer)[component]["status"]
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"{component}: {base} does not tell: {error}") from None
    if status != "healthy":
        raise SystemExit(f"{component}: {status}")


if __name__ == "__main__":
    main(sys.argv[1])
