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
    """Project name at Weights & Biases and SwanLab."""

    use_swanlab: Annotated[bool, NONE] = False
    """Send metrics to SwanLab. Without a login they are kept in the run's folder swanlab, and the
    upload command is printed. Needs the extra swanlab."""

    use_tensorboard: Annotated[bool, NONE] = False
    """Write metrics for TensorBoard to the run's folder tensorboard. Needs the extra
    tensorboard."""

    send_text: Annotated[bool, NONE] = False
    """Send texts, too: the prompts of eval.num_samples and both answers. A tracker that uploads
    sends them off this machine."""
