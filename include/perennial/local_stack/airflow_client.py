"""A client of Airflow's REST API for the local stack. The library never imports Airflow."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from perennial.core.errors import PerennialError

DONE = ("success", "failed")
ATTEMPTS = 6
#: Within so many seconds an API server that was killed answers again, on a busy machine too.
RESTART_SECONDS = 90.0
#: Two parallel triggers can block each other in a server with a SQLite database.
_TRIGGER_LOCK = threading.Lock()


class Airflow:
    """A client of one Airflow.

    Args:
        url: the server's address, such as ``http://localhost:8080``.
        user, password: of a user who may trigger DAGs.
    """

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url, self._user, self._password = url, user, password
        self._http = httpx.Client(base_url=url, timeout=60, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def health(self) -> dict[str, str]:
        """The state of each component; empty while the server does not answer."""
        return {name: str(item.get("status")) for name, item in self.monitor().items()}

    def monitor(self) -> dict[str, dict[str, Any]]:
        """Status and latest heartbeat of each component; empty while the server does not answer."""
        try:
            answer = self._http.get("/api/v2/monitor/health", timeout=5)
            health = answer.json() if answer.status_code == 200 else {}
            return {name: item for name, item in health.items() if isinstance(item, dict)}
        except (httpx.HTTPError, ValueError, AttributeError):
            return {}

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """Call the REST API, with retries while the server is busy or restarted; returns the decoded answer.

        All calls made here are idempotent: the caller chooses the id of a run that it triggers.

        Raises:
            PerennialError: the server refuses, with its reason, or cannot be reached.
        """
        began, logged_in = time.monotonic(), False
        for attempt in itertools.count():
            try:
                answer = self._http.request(method, f"/api/v2{path}", **arguments)
                if answer.status_code == 401 and not logged_in:
                    self._log_in()
                    logged_in = True
                    continue
            except httpx.HTTPError as error:
                if time.monotonic() - began > RESTART_SECONDS:
                    raise PerennialError(f"Airflow at {self.url} does not answer: {error!r}",
                                         "`make status` says which component is missing") from error  # fmt: skip
                time.sleep(1)
                continue
            # SQLite lets one writer in at a time, so a busy server may fail once
            if answer.status_code >= 500 and attempt < ATTEMPTS - 1:
                time.sleep(1)
                continue
            if answer.status_code == 409 and attempt:
                return None  # the previous attempt had succeeded
            if answer.status_code >= 400:
                raise PerennialError(f"Airflow refused {method} {path} ({answer.status_code}): {_detail(answer)}",
                                     "correct what it names, then run this again")  # fmt: skip
            return answer.json() if answer.content else None
        raise AssertionError("unreachable")

    def _log_in(self) -> None:
        answer = self._http.post("/auth/token", json={"username": self._user, "password": self._password})
        if answer.status_code >= 400:
            raise PerennialError(f"Airflow does not accept the user {self._user} ({answer.status_code})",
                                 "make stop run")  # fmt: skip
        self._http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def paused(self) -> dict[str, bool]:
        """The DAGs that Airflow knows, and whether each is paused."""
        paused: dict[str, bool] = {}
        while True:  # a page has at most a hundred DAGs, whatever the limit
            page = self.call(
                "GET", "/dags", params={"limit": 100, "offset": len(paused), "order_by": "dag_id"}
            )
            paused |= {str(dag["dag_id"]): bool(dag["is_paused"]) for dag in page["dags"]}
            if not page["dags"] or len(paused) >= page["total_entries"]:
                return paused

    def import_errors(self) -> list[str]:
        """Airflow's import errors, with file and stack trace."""
        answer = self.call("GET", "/importErrors", params={"limit": 100})
        return [f"{item['filename']}: {str(item['stack_trace']).strip()}" for item in answer["import_errors"]]

    def unpause(self, dag: str) -> None:
        """Unpause a DAG."""
        self.call("PATCH", f"/dags/{dag}", json={"is_paused": False})

    def trigger(self, dag: str, *, key: str | None = None, conf: dict[str, Any] | None = None) -> str:
        """Start a run, of one partition where `key` is given; returns its id."""
        run = f"loop__{key or 'range'}__{uuid.uuid4().hex[:8]}"
        body: dict[str, Any] = {"dag_run_id": run, "logical_date": None, "conf": conf or {}}
        # SQLite's clock has whole seconds, and a run starts once its time has passed: two seconds ago, immediately.
        body["run_after"] = (datetime.now(UTC) - timedelta(seconds=2)).isoformat()
        if key is not None:
            body["partition_key"] = key
        with _TRIGGER_LOCK:
            self.call("POST", f"/dags/{dag}/dagRuns", json=body)
        return run

    def runs(self, dag: str, limit: int = 100) -> list[dict[str, Any]]:
        """The latest runs of a DAG, newest first."""
        answer = self.call("GET", f"/dags/{dag}/dagRuns", params={"limit": limit, "order_by": "-id"})
        return list(answer["dag_runs"])

    def wait(self, dag: str, run: str) -> str:
        """Wait for the end of a run with the server's long poll; returns its state.

        Polling the run's state costs the server 15 ms of CPU a call, ten times as much.

        Raises:
            PerennialError: the server refuses.
        """
        path = f"/dags/{dag}/dagRuns/{run}/wait"
        with self._http.stream("GET", f"/api/v2{path}", params={"interval": 0.1}, timeout=None) as answer:
            if answer.status_code >= 400:
                answer.read()
                raise PerennialError(f"Airflow refused GET {path} ({answer.status_code}): {_detail(answer)}",
                                     "correct what it names, then run this again")  # fmt: skip
            *_, last = answer.iter_lines()
        return str(json.loads(last)["state"])

    def tasks(self, dag: str, run: str) -> list[dict[str, Any]]:
        """The task instances of a run."""
        return list(self.call("GET", f"/dags/{dag}/dagRuns/{run}/taskInstances")["task_instances"])

    def log(self, dag: str, run: str, task: str, attempt: int) -> list[str]:
        """The lines of one attempt of a task."""
        path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/logs/{attempt}"
        content = self.call("GET", path, headers={"Accept": "application/json"})["content"]
        lines = []
        for item in content if isinstance(content, list) else [content]:
            if isinstance(item, dict):
                lines.append(str(item.get("event", "")))
                lines += [
                    f"{e.get('exc_type')}: {e.get('exc_value')}" for e in item.get("error_detail") or []
                ]
            else:
                lines.append(str(item))
        return lines

    def failure_reason(self, dag: str, run: str) -> str:
        """Why a run failed: the failed task and the error in its log."""
        failed = [t for t in self.tasks(dag, run) if t["state"] == "failed"]
        if not failed:
            return "no task failed; it may have timed out or been marked failed by hand"
        return self._log_errors(dag, run, failed[0], max(1, int(failed[0]["try_number"])))

    def retry_reason(self, dag: str, run: str) -> str | None:
        """The error of a task that waits for its retry; None if none does."""
        waiting = [t for t in self.tasks(dag, run) if t["state"] == "up_for_retry"]
        return (
            self._log_errors(dag, run, waiting[0], max(1, int(waiting[0]["try_number"]))) if waiting else None
        )

    def _log_errors(self, dag: str, run: str, task: dict[str, Any], attempt: int) -> str:
        """The error lines in the log of one attempt of a task."""
        try:
            lines = self.log(dag, run, task["task_id"], attempt)
        except PerennialError as error:
            lines = [f"(its log cannot be read: {error.cause})"]
        errors = [line for line in lines if re.search(r"\w(Error|Exception): ", line)] or [
            line for line in lines if line and not line.startswith("::")
        ][-5:]
        return f"task {task['task_id']}: " + "\n".join(errors[-3:])


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("detail", answer.text))[:500]
    except ValueError:
        return answer.text[:500]
