"""The use of the machine during a training, as MLflow shows it."""

from __future__ import annotations

import contextlib
import logging

#: Seconds between two samples; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL overrides it.
SYSTEM_METRICS_SECONDS = 10


class SystemMetrics:
    """CPU, memory, disk, network and GPU of this process's machine while a training runs, by MLflow's own thread.

    Args:
        run_id: the run in MLflow.
    """

    def __init__(self, run_id: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # It says at INFO that it starts and ends, and why there is no GPU.
        logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
        self._monitor = SystemMetricsMonitor(run_id, sampling_interval=SYSTEM_METRICS_SECONDS)
        self._monitor.start()

    def close(self) -> None:
        """Stop, and log what was measured since the last sample: a short training then has one, too."""
        with contextlib.suppress(Exception):  # nothing depends on it
            self._monitor.finish()
            self._monitor.collect_metrics()
            self._monitor.publish_metrics(self._monitor.aggregate_metrics())
            self._monitor.mlflow_logger.flush()
