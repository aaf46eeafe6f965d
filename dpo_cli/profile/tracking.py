"""The table `[track]`: experiment trackers that receive the metrics of a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dpo_cli.profile.table import NONE, Table


class Track(Table):
    """Trackers that receive a run's metrics, but no texts (see send_text), paths or host names."""

    use_wandb: Annotated[bool, NONE] = False
    """Send metrics to Weights & Biases. Without a login they are kept in the run's folder wandb,
    and the upload command is printed. Needs the extra wandb."""

    # The characters that Weights & Biases accepts.
    wandb_project: Annotated[
        str, Field(pattern=r"^[^/\\#?%:\x00-\x1f]{1,128}$", examples=["MiniMind-DPO"]), NONE
    ] = "MiniMind-DPO"
    """Project name at Weights & Biases, SwanLab and Trackio; the experiment at MLflow."""

    use_swanlab: Annotated[bool, NONE] = False
    """Send metrics to SwanLab. Without a login they are kept in the run's folder swanlab, and the
    upload command is printed. Needs the extra swanlab."""

    use_tensorboard: Annotated[bool, NONE] = False
    """Write metrics for TensorBoard to the run's folder tensorboard. Needs the extra
    tensorboard."""

    use_trackio: Annotated[bool, NONE] = False
    """Write metrics to Trackio's database on this machine. Needs the extra trackio."""

    use_mlflow: Annotated[bool, NONE] = False
    """Send metrics to the server of MLFLOW_TRACKING_URI. Without this variable they are written to
    mlflow.db beside the runs. Needs the extra mlflow."""

    send_text: Annotated[bool, NONE] = False
    """Send texts, too: the prompts of eval.num_samples and both answers. A tracker that uploads
    sends them off this machine."""
