"""``perennial.verify``: compares what is stored of each model with the digests that were recorded when it was written.

It checks the ledger, the champion and its files in MLflow, the manifests, and every data file of the lake. A finding
opens the incident `integrity` of the model, which closes when the next verification finds nothing.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, BaseOperator, Context

from perennial.alerting.incidents import SignalObservation
from perennial.spec.model_spec import ModelSpec
from perennial_airflow.bundle_dags import bundle_dag, for_each_model

log = logging.getLogger("airflow.task")
#: The signal of the incident that a finding opens.
SIGNAL = "integrity"


def dags() -> dict[str, DAG]:
    """The DAG, by its id; one for all models."""
    with bundle_dag(
        "verify",
        description="Compares the lake and MLflow with the recorded digests, once a week.",
        doc=__doc__,
        schedule="0 5 * * 0",
        tag="maintenance",
    ) as dag:
        VerifyModels(task_id="verify", execution_timeout=timedelta(hours=12))
    return {dag.dag_id: dag}


class VerifyModels(BaseOperator):
    """Verifies every model, and reports what was found as incidents."""

    ui_color = "#f2f2f2"

    def execute(self, context: Context) -> dict[str, Any]:
        """Verify the models.

        Returns:
            By model: numbers of records, manifests and data files, and of findings.

        Raises:
            AirflowException: a model could not be verified; the others were. It is tried again if time may heal that.
        """
        from perennial.lifecycle import verification
        from perennial_airflow.alerting import alerts

        def verify(spec: ModelSpec) -> dict[str, Any]:
            result = verification.verify_model(spec, actor="perennial.verify")
            findings = result["findings"]
            for finding in findings:
                log.error("%s: %s", spec.name, finding)
            state = SignalObservation("bad" if findings else "ok", verification.summarise(findings))
            # Its date is that of the run: what is verified belongs to no partition.
            alerts.report_signals(spec, spec.cadence.key_of(datetime.now(UTC)), {SIGNAL: state})
            log.info(
                "Verified %s: %d ledger records, %d manifests, %d data files: %s.",
                spec.name, result["records"], result["manifests"], result["files"],
                f"{len(findings)} are not as they were written" if findings else "all as they were written",
            )  # fmt: skip
            return result | {"findings": len(findings)}

        return for_each_model(verify, "not verified")
