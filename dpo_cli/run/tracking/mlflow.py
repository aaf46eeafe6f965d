"""MLflow: the server of MLFLOW_TRACKING_URI, else one database beside all runs of a folder."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from dpo_cli.run.tracking.rows import Row
from dpo_cli.run.tracking.tracker import TrackedRun

_IN_EVERY_ROW = ("train/learning_rate", "eval/loss")
"""Metrics of which each row has at least one."""
_METRICS_PER_REQUEST = 1000
_PARAMETERS_PER_REQUEST = 100
_ONLY_OURS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""No reports of its use, and a server that does not answer fails within a minute."""


class MLflow:
    """A run of MLflow, the same for all starts of our run; see `Tracker`."""

    can_go_back: ClassVar[bool] = False

    def __init__(self, run: TrackedRun, state: dict[str, Any]) -> None:
        for name, value in _ONLY_OURS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient, entities

        self._entities = entities
        runs = run.directory.parent
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._metrics: list[Any] = []
        self._id = state.get("id", "")
        state["sent"] = self._last_step()
        if state["sent"] < 0:
            artifacts = (runs / "mlflow").as_uri() if uri.startswith("sqlite:") else None
            self._id = self._create(run, artifacts)
        state["id"] = self._id
        self._client.update_run(self._id, status="RUNNING")

    def go_back(self, optimizer_step: int) -> None:
        """Do nothing: MLflow cannot replace steps."""

    def log(self, row: Row) -> None:
        """Keep a row for `flush`; the step of MLflow is the optimizer step."""
        milliseconds = int(row.time * 1000)
        self._metrics += [
            self._entities.Metric(name, value, milliseconds, row.optimizer_step)
            for name, value in row.metrics.items()
        ]
        if row.samples:
            text = "\n\n---\n\n".join(row.samples_as_markdown())
            self._client.log_text(self._id, text, f"samples/step-{row.optimizer_step:08d}.md")

    def flush(self) -> None:
        """Send the rows."""
        while self._metrics:
            self._client.log_batch(self._id, metrics=self._metrics[:_METRICS_PER_REQUEST])
            del self._metrics[:_METRICS_PER_REQUEST]

    def finish(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._id)

    def _last_step(self) -> int:
        """Return the last step that the service has of this run; -1 if it has none."""
        from mlflow.exceptions import MlflowException

        if not self._id:
            return -1
        try:
            histories = [self._client.get_metric_history(self._id, name) for name in _IN_EVERY_ROW]
        except MlflowException:  # another service than at the last start
            return -1
        return max((metric.step for history in histories for metric in history), default=-1)

    def _create(self, run: TrackedRun, artifacts: str | None) -> str:
        """Create a run with its parameters and return its id.

        Args:
            run: description of the run.
            artifacts: URI for texts of a new experiment; None for the server's choice.
        """
        experiment = self._client.get_experiment_by_name(run.project)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(run.project, artifact_location=artifacts)
        )
        created: str = self._client.create_run(experiment_id, run_name=run.name).info.run_id
        parameters = [
            self._entities.Param(f"{table}.{key}", str(value))
            for table, values in run.config.items()
            for key, value in values.items()
        ]
        for start in range(0, len(parameters), _PARAMETERS_PER_REQUEST):
            chunk = parameters[start : start + _PARAMETERS_PER_REQUEST]
            self._client.log_batch(created, params=chunk)
        return created
