"""Exit with 0 if the named component of Airflow is healthy: metadatabase, scheduler, dag_processor or triggerer.

It asks the API server, which knows all heartbeats: `airflow jobs check` costs four seconds of CPU each time.
``AIRFLOW_HEALTH_URL`` is the server's address, if it is not in this container.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request


def main(component: str) -> None:
    """Ask the API server; exits with 1 and the reason if the component is not healthy."""
    base = os.environ.get("AIRFLOW_HEALTH_URL", "http://127.0.0.1:8080").rstrip("/")
    try:
        with urllib.request.urlopen(f"{base}/api/v2/monitor/health", timeout=4) as answer:  # nosec B310: the operator's own
            status = json.load(answer)[component]["status"]
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"{component}: {base} gives no answer: {error}") from None
    if status != "healthy":
        raise SystemExit(f"{component}: {status}")


if __name__ == "__main__":
    main(sys.argv[1])
