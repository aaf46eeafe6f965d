"""The table `launch` of a profile: how many processes train together, and where they meet."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from dpo_cli.profile.table import NONE, Table, contradiction


class Launch(Table):
    """How many processes train together; a run that torchrun or Slurm starts has that from them."""

    nproc_per_node: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"], Field(examples=[2, "auto"]), NONE
    ] = 1
    """Processes on this machine, each with a device of its own; "auto" is one for each CUDA card,
    and one where there is none. Several take train.global_batch_size to train the same recipe."""

    rdzv_endpoint: Annotated[
        str | None,
        Field(
            pattern=r"^([^\s:/]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$",
            examples=["node0:29400"],
        ),
        NONE,
    ] = None
    """Where several machines meet: the name or address of the first, whose node_rank is 0, and a
    port that is free there."""

    rdzv_backend: Annotated[Literal["c10d", "static", "etcd-v2"], NONE] = "c10d"
    """How they meet, in torchrun's words: "c10d" needs nothing but the endpoint, "static"
    numbers the ranks by node_rank, "etcd-v2" asks a server at the endpoint."""

    nnodes: Annotated[int, Field(ge=1), NONE] = 1
    """Machines that train together, each with its own `dpo train`."""

    node_rank: Annotated[int, Field(ge=0), NONE] = 0
    """Which of them this is: 0 keeps the run's folder, the others join it."""

    max_restarts: Annotated[int, Field(ge=0), NONE] = 0
    """How often all processes are started again, from the newest whole state, after one was
    lost."""

    timeout_seconds: Annotated[float, Field(gt=0), NONE] = 600.0
    """How long a process waits for the others before it says which of them did not come."""

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
                f"must be below launch.nnodes, which is {nnodes}: machines are counted from 0"
            )
        return value

    @field_validator("nnodes")
    @classmethod
    def _check_nnodes(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("rdzv_endpoint", ...) is None:
            raise contradiction(
                "several machines must know where to meet; for example "
                'launch.rdzv_endpoint = "node0:29400", with the name of the first'
            )
        return value
