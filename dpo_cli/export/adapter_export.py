"""The directory of a run's adapter for peft and tools that read its format, such as vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from dpo_cli.errors import DpoError, UsageError
from dpo_cli.export.verified_write import check_directory, rename_on_success
from dpo_cli.models.adapted import merge_adapter
from dpo_cli.models.adapter import load_with_peft, read_adapter, write_adapter
from dpo_cli.models.loading import ModelWeights, build_model
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.models.support import use_eager_attention
from dpo_cli.models.trainable import hub_name
from dpo_cli.profile import adapter_config, folder
from dpo_cli.profile.schema import Profile
from dpo_cli.run.disk import explain_disk_errors

ADAPTER_FILES = frozenset((folder.ADAPTER, adapter_config.WEIGHTS))
"""Files that an export of an adapter writes."""


def require_adapter(profile: Profile, dtype: str | None) -> None:
    """Check that a run has an adapter of a model that exists.

    Raises:
        UsageError: it trains all weights, its adapter belongs to a merged model, or `dtype` is not
            that of the adapter.
    """
    if not profile.lora.is_on:
        raise UsageError(
            "--format peft: the run trains all weights, not an adapter", "Leave out --format."
        )
    if dtype not in (None, "float32"):
        raise UsageError(
            f"--dtype {dtype}: an adapter is exported as it is trained, in float32",
            "Leave out --dtype.",
        )
    if profile.model.adapter is not None and not profile.lora.continue_adapter:
        raise UsageError(
            "--format peft: the adapter belongs to model.weights with model.adapter merged, which"
            " is no model of its own",
            "Leave out --format to export merged weights.",
        )


def check_adapter_destination(path: Path) -> None:
    """Refuse a destination that would replace anything but an adapter.

    Raises:
        DpoError: naming what is there.
    """
    names = {each.name for each in path.iterdir()} if path.is_dir() else set()
    check_directory(path, names - ADAPTER_FILES)


@contextmanager
def verified_adapter(
    path: Path, trained: ModelWeights, profile: Profile
) -> Iterator[tuple[ModelWeights, ResponseScorer]]:
    """Write an adapter to a temporary path, load it with peft, and rename after the block.

    Args:
        path: final path of the directory.
        trained: base weights with the adapter.
        profile: names the base model.

    Yields:
        The base weights with the adapter of the file merged, and a model of plain transformers
        with the adapter as peft loads it.

    Raises:
        DpoError: the directory cannot be written, or its tensors differ when read back.
    """
    adapter = trained.adapter
    assert adapter is not None
    assert adapter.state is not None
    with explain_disk_errors(path.parent), rename_on_success(path) as new:
        write_adapter(new, adapter, adapter.state, hub_name(profile))
        read_back, digest = read_adapter(new, trained.architecture)
        assert read_back.state is not None
        for name, tensor in adapter.state.items():
            if not torch.equal(read_back.state[name], tensor):
                raise DpoError(
                    f"{path}: {name} read back differs from what was written",
                    "Disk or memory may be faulty. Choose another path.",
                )
        model = build_model(trained.architecture, trained.state)
        use_eager_attention(model)
        loaded = ResponseScorer(load_with_peft(model, new), fallback_reason="plain transformers")
        merged = merge_adapter(replace(trained, adapter=read_back))
        yield replace(merged, fingerprint=digest), loaded
