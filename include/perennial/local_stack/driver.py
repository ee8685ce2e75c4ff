"""Run one sample model through its nights with Airflow's REST API, as a schedule would.

Finished work is read from the manifests and the ledger: an interrupted demonstration continues where it stopped, and a
finished one does nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import date
from typing import Any

from perennial.core import dates
from perennial.core.errors import PerennialError
from perennial.local_stack.airflow_client import DONE, Airflow
from perennial.local_stack.progress import ProgressDisplay
from perennial.local_stack.sample.plan import NIGHTS_AFTER_RETRAINING, Plan
from perennial.spec import catalog
from perennial.storage import ledger, manifests
from perennial.storage.ledger import Decision, LedgerKind, LedgerRecord

WAIT_FOR_EVENT = 90.0


class DriverStopped(Exception):
    """The driver was stopped from outside, by another driver's failure or by Ctrl-C."""


class RunFailedError(PerennialError):
    """A DAG run failed."""


class Driver:
    """Runs one plan.

    Args:
        plan: what to do.
        airflow: a client that only this driver uses, because drivers run in parallel.
        progress: where progress is shown.
        halt: set it to make the driver stop at its next check.
    """

    def __init__(
        self, plan: Plan, airflow: Airflow, progress: ProgressDisplay, halt: threading.Event
    ) -> None:
        self.plan, self.airflow, self.progress, self.halt = plan, airflow, progress, halt
        self.model = plan.model
        self.spec = catalog.load_model_by_name(plan.model)
        self._searched_stages: set[str] = set()
        self._reported_retries: set[str] = set()
        self._checks: dict[str, int] = {}

    def run(self) -> None:
        """Run the part of the plan that is not finished.

        Raises:
            RunFailedError: a DAG run failed, with its cause.
            DriverStopped: halt was set.
        """
        self._publish_history()
        self._train_first_champion()
        nights = dates.dates(dates.add_days(self.plan.trained_until, 1), self.plan.latest)
        for night in nights:
            self._publish_and_score(night)
            if self._is_monitored(night):
                self._monitor(night)
            if self.plan.stop_after_retraining and self._has_finished(night):
                break
        self.progress.done(self.model, f"done, up to {night}")

    def _publish_history(self) -> None:
        first, last = self.plan.first, self.plan.trained_until
        if all(self._done("data", day) for day in dates.dates(first, last)):
            return
        self.progress.working(self.model, f"publishing {first} to {last} in one run", milestone=True)
        self._run("data", conf={"start": first, "end": last})
        records = [manifests.read(self.model, "data", day) for day in dates.dates(first, last)]
        rows, bad = (sum(getattr(m, name) for m in records if m) for name in ("rows_out", "quarantined"))
        self.progress.done(
            self.model, f"{len(records)} nights published: {rows:,} rows, {bad:,} in quarantine"
        )

    def _train_first_champion(self) -> None:
        day = self.plan.trained_until
        if self._promoted(day):
            return
        self.progress.working(self.model, f"training the first model on data up to {day}", milestone=True)
        self._run("train", key=day, conf={"reason": "the first model"})
        self._report_training(day)
        if not self._promoted(day):
            training = manifests.read(self.model, "train", day)
            reasons = (
                "; ".join(training.result["gate"]["reasons"]) if training else "the step wrote no manifest"
            )
            raise PerennialError(f"the first model did not pass its gate: {reasons}",
                                 "change training or gate in its model.yaml, then run `make run` again",
                                 model=self.model, partition=day)  # fmt: skip

    def _publish_and_score(self, night: str) -> None:
        if self._done("data", night) and self._done("score", night):
            return
        self.progress.working(self.model, f"night {night}: publish and score")
        before = {run["dag_run_id"] for run in self._runs_of("score", night)}
        run = self._active("data", night) or self._trigger("data", key=night)
        polls = 0
        while not self._done("score", night):
            self._pause(0.2)
            polls += 1
            if polls % 8:
                continue
            self._check("data", run)
            for scoring in self._runs_of("score", night):
                if scoring["dag_run_id"] in before:
                    continue
                self._check("score", scoring["dag_run_id"])
                if scoring["state"] in DONE and not self._done("score", night):
                    raise RunFailedError(f"{self.model}.score skipped the night {night}: there is no champion",
                                    f"promote a version first: trigger {self.model}.train",
                                    model=self.model, partition=night)  # fmt: skip

    def _monitor(self, night: str) -> None:
        if not self._decision(night):
            self.progress.working(self.model, f"night {night}: monitoring", milestone=True)
            self._run("monitor", key=night)
        decision = self._decision(night)
        if decision is None:
            raise PerennialError("monitoring ended without a decision in the ledger",
                                 f"read the log of the DAG {self.model}.monitor",
                                 model=self.model, partition=night)  # fmt: skip
        monitored = manifests.read(self.model, "monitor", night)
        verdict = monitored.result["verdict"] if monitored else "?"
        requested = decision["decision"] == Decision.REQUESTED
        self.progress.done(self.model, f"{night}: {verdict}; retraining {decision['decision']}")
        if requested and not self._trained(night):
            self.progress.working(
                self.model, f"retraining, requested by monitoring, on data up to {night}", milestone=True
            )
            self._await("train", self._event_run("train", night, decision["reason"]))
            self._report_training(night)
        elif night == self.plan.manual_training_on and not self._trained(night):
            self.progress.working(
                self.model, f"training on data up to {night}, triggered by hand", milestone=True
            )
            self._run(
                "train",
                key=night,
                conf={"reason": "triggered by hand to compare with the declined retraining"},
            )
            self._report_training(night)

    def _report_training(self, day: str) -> None:
        training = manifests.read(self.model, "train", day)
        if not training:
            return
        figure = training.result["metrics"].get(self.spec.metric)
        figure_text = f"{self.spec.metric} {figure:.4g}" if isinstance(figure, float) else ""
        outcome = "new champion" if self._promoted(day) else "rejected by the gate, the champion stays"
        self.progress.done(
            self.model, f"version {training.model_version} trained up to {day}, {figure_text}: {outcome}"
        )

    # --- what is done, from manifests and ledger

    def _done(self, step: str, key: str) -> bool:
        return manifests.read(self.model, step, key) is not None

    def _records(self, kind: LedgerKind, day: str) -> list[LedgerRecord]:
        return [r for r in ledger.records(self.model, kind) if r["partition"] == day]

    def _promoted(self, day: str) -> bool:
        return bool(self._records(LedgerKind.PROMOTION, day))

    def _trained(self, day: str) -> bool:
        """Whether the training of that date has ended, its promotion included."""
        training = manifests.read(self.model, "train", day)
        return training is not None and (not training.result["gate"]["passed"] or self._promoted(day))

    def _decision(self, day: str) -> LedgerRecord | None:
        decisions = self._records(LedgerKind.RETRAINING, day)
        return decisions[-1] if decisions else None

    def _is_monitored(self, night: str) -> bool:
        """Whether the monitoring schedule has a run for this partition."""
        from perennial.lifecycle.backlog import has_tick

        return has_tick(self.spec, self.spec.schedule.monitor, night)

    def _has_finished(self, night: str) -> bool:
        """Whether the champion of a requested retraining has served for enough nights."""
        requested = {
            r["partition"]
            for r in ledger.records(self.model, LedgerKind.RETRAINING)
            if r["decision"] == Decision.REQUESTED
        }
        promotions = ledger.records(self.model, LedgerKind.PROMOTION)
        promoted = [r["partition"] for r in promotions if r["partition"] in requested]
        return any(
            (date.fromisoformat(night) - date.fromisoformat(day)).days >= NIGHTS_AFTER_RETRAINING
            for day in promoted
        )

    # --- Airflow's runs

    def _run(self, stage: str, *, key: str | None = None, conf: dict[str, Any] | None = None) -> None:
        active = self._active(stage, key)
        self._await(stage, active or self._trigger(stage, key=key, conf=conf))

    def _trigger(self, stage: str, *, key: str | None = None, conf: dict[str, Any] | None = None) -> str:
        return self.airflow.trigger(f"{self.model}.{stage}", key=key, conf=conf)

    def _runs_of(self, stage: str, key: str | None) -> list[dict[str, Any]]:
        runs = self.airflow.runs(f"{self.model}.{stage}", limit=20)
        return [run for run in runs if run.get("partition_key") == key]

    def _active(self, stage: str, key: str | None) -> str | None:
        """An active run of an interrupted demonstration; searched only once for each stage."""
        if stage in self._searched_stages:
            return None
        self._searched_stages.add(stage)
        return next((str(r["dag_run_id"]) for r in self._runs_of(stage, key) if r["state"] not in DONE), None)

    def _event_run(self, stage: str, key: str, reason: str) -> str:
        """The run that an asset event started; triggered here if the event was lost with Airflow's database."""
        runs: list[str] = []

        def started() -> bool:
            runs.extend(str(run["dag_run_id"]) for run in self._runs_of(stage, key))
            return bool(runs)

        if self._until(started, WAIT_FOR_EVENT):
            return runs[0]
        self.progress.note(
            f"{self.model}: no event started {stage} for {key}; starting it with the recorded reason."
        )
        return self._trigger(stage, key=key, conf={"reason": reason})

    def _await(self, stage: str, run: str) -> None:
        while self._check(stage, run) not in DONE:
            self._pause(0.5)

    def _check(self, stage: str, run: str) -> str:
        """The state of a run; also reports a task that waits for its retry.

        Raises:
            RunFailedError: the run failed.
        """
        dag = f"{self.model}.{stage}"
        state = str(self.airflow.call("GET", f"/dags/{dag}/dagRuns/{run}")["state"])
        if state == "failed":
            raise RunFailedError(
                f"DAG {dag}, run {run} failed: {self.airflow.failure_reason(dag, run)}",
                f"correct the cause, then run `make run` again (it continues from here), or clear the task at "
                f"{self.airflow.url}/dags/{dag}/runs/{run}",
                model=self.model,
            )
        checks = self._checks[run] = self._checks.get(run, 0) + 1
        if (
            state not in DONE
            and checks % 10 == 0
            and run not in self._reported_retries
            and (reason := self.airflow.retry_reason(dag, run))
        ):
            self._reported_retries.add(run)
            self.progress.note(f"{dag}, run {run}: will be retried. {reason}")
        return state

    def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            self._pause(0.5)
        return True

    def _pause(self, seconds: float) -> None:
        if self.halt.wait(seconds):
            raise DriverStopped
