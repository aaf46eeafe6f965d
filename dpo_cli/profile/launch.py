"""The table `[launch]`: number of processes and machines, and their rendezvous."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from dpo_cli.profile.table import NONE, Table, contradiction


class Launch(Table):
    """Processes that train together. Not used in a run that torchrun or Slurm starts."""

    nproc_per_node: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"], Field(examples=[2, "auto"]), NONE
    ] = 1
    """Processes on this machine, each with a device of its own. "auto" is one per CUDA GPU, or one
    without a GPU. To train the same recipe with several, set train.global_batch_size."""

    strategy: Annotated[Literal["replicate", "shard"], NONE] = "replicate"
    """Division of the model among the processes: "replicate" gives each the whole model, "shard"
    its part of all weights, gradients and moments, for models that do not fit on one device. Shards
    communicate in each forward, which is slower. You can change it at a resume."""

    rdzv_endpoint: Annotated[
        str | None,
        Field(
            pattern=r"^([^\s:/]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$",
            examples=["node0:29400"],
        ),
        NONE,
    ] = None
    """Rendezvous of several machines, HOST:PORT: the name or address of the first machine
    (node_rank 0), and a free port there. Default: none."""

    rdzv_backend: Annotated[Literal["c10d", "static", "etcd-v2"], NONE] = "c10d"
    """Rendezvous backend of torchrun: "c10d" needs only the endpoint, "static" numbers the ranks by
    node_rank, "etcd-v2" uses a server at the endpoint."""

    nnodes: Annotated[int, Field(ge=1), NONE] = 1
    """Number of machines that train together, each with its own `dpo train`."""

    node_rank: Annotated[int, Field(ge=0), NONE] = 0
    """Number of this machine: 0 writes the run directory, the others join."""

    max_restarts: Annotated[int, Field(ge=0), NONE] = 0
    """Restarts of all processes, from the newest complete checkpoint, after one was lost."""

    timeout_seconds: Annotated[float, Field(gt=0), NONE] = 600.0
    """Seconds that a process waits for the others before it stops and names the missing ones."""

    @field_validator("nproc_per_node", mode="before")
    @classmethod
    def _check_nproc_per_node(cls, value: object) -> object:
        if value == "auto" or (type(value) is int and value >= 1):
            return value
        raise contradiction(
            'must be a whole number, 1 or more, or "auto"; for example launch.nproc_per_node = 2'
        )

    @field_validator("node_rank")
    @classmethod
    def _check_node_rank(cls, value: int, info: ValidationInfo) -> int:
        nnodes = info.data.get("nnodes")
        if nnodes is not None and value >= nnodes:
            raise contradiction(
                f"must be below launch.nnodes, which is {nnodes}: machines are numbered from 0"
            )
        return value

    @field_validator("nnodes")
    @classmethod
    def _check_nnodes(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("rdzv_endpoint", ...) is None:
            raise contradiction(
                "several machines need a rendezvous address; for example "
                'launch.rdzv_endpoint = "node0:29400", with the name of the first machine'
            )
        return value
