"""The table `[track]`: which trackers get the figures of a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dpo_cli.profile.table import NONE, Table


class Track(Table):
    """Which trackers get the figures of a run, read off its event stream by a process beside it.
    Neither texts nor paths nor host names go there."""

    use_wandb: Annotated[bool, NONE] = False
    """Whether Weights & Biases gets them; without a login they are kept in the run's folder wandb,
    and the command that uploads them is printed. Needs the extra wandb."""

    # What Weights & Biases takes.
    wandb_project: Annotated[
        str, Field(pattern=r"^[^/\\#?%:\x00-\x1f]{1,128}$", examples=["MiniMind-DPO"]), NONE
    ] = "MiniMind-DPO"
    """Project there, and at SwanLab."""

    use_swanlab: Annotated[bool, NONE] = False
    """Whether SwanLab gets them; without a login they are kept in the run's folder swanlab, and the
    command that uploads them is printed. Needs the extra swanlab."""

    use_tensorboard: Annotated[bool, NONE] = False
    """Whether they are written for TensorBoard, into the run's folder tensorboard. Needs the extra
    tensorboard."""

    send_text: Annotated[bool, NONE] = False
    """Whether trackers get texts, too: the prompts of eval.num_samples and both answers. They leave
    this machine then, where a tracker uploads what it gets."""
