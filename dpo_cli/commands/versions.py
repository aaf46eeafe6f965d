"""Text of `dpo --version --verbose`, for a bug report: versions, processor and device."""

from __future__ import annotations

import contextlib
import platform
from importlib import metadata

from dpo_cli import __version__
from dpo_cli.errors import DpoError
from dpo_cli.extras import packages_of_extras

_PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub"),
    *("numpy", "pydantic", "typer", "rich"),
)


def version_lines() -> list[str]:
    """Return one line for each version, the extras, platform, processor, device and threads.

    No line has a path, a host name or a user name. Loads torch.
    """
    values = {
        "dpo": __version__,
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "extras": _installed_extras(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        **_hardware(),
    }
    width = max(map(len, values))
    return [f"{name:<{width}}  {value}" for name, value in values.items()]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _installed_extras() -> str:
    """Return the installed packages of the extras, with their versions."""
    found = []
    for package in packages_of_extras():
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    return ", ".join(found) or "none"


def _hardware() -> dict[str, str]:
    """Return processor capability, device and threads as `dpo train` would use them."""
    try:
        import torch

        from dpo_cli.compute.device import resolve
        from dpo_cli.compute.threads import set_threads
    except (ImportError, OSError) as error:  # a torch that does not load is worth a report
        return {"processor": platform.machine(), "device": f"torch: {type(error).__name__}"}
    set_threads(None)
    try:
        device = resolve("auto", "auto")
        found = ", ".join([device.name, device.dtype_name, *map(" ".join, device.versions.items())])
    except DpoError as error:
        found = error.message
    return {
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": found,
        "threads": str(torch.get_num_threads()),
    }
