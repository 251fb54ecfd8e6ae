"""System metrics of a run, by MLflow's own monitor, kept from ever delaying the run."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

INTERVAL_SECONDS = 5.0


class SystemMetrics:
    """Samples processor, memory, disk, network and GPU of this machine onto a run."""

    def __init__(self, uri: str, run_id: str) -> None:
        self._uri, self._run_id = uri, run_id
        self._monitor: Any = None

    def keep_alive(self) -> None:
        """Start the monitor, or start it again: it gives up when the server is away.

        Call it only when the server has just answered: the monitor asks it for the last step.
        """
        if self._monitor is not None and self._monitor._process.is_alive():
            return
        with contextlib.suppress(Exception):
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            monitor = SystemMetricsMonitor(
                self._run_id,
                sampling_interval=INTERVAL_SECONDS,
                resume_logging=True,
                tracking_uri=self._uri,
            )
            monitor.start()
            self._monitor = monitor

    def stop(self) -> None:
        """Stop sampling, within a second whatever the server does."""
        if self._monitor is not None:
            finish = threading.Thread(target=self._monitor.finish, daemon=True)
            finish.start()
            finish.join(1.0)
            self._monitor = None
