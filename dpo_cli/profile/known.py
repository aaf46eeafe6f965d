"""Models and data sets on the Hub that `dpo init` offers where a project has none.

The facts are those of the model cards and pages of the Hub in 2026. A license is named only where
the card states it: the license of MiniMind's code is not that of its weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from dpo_cli.hub.download import PREFIX

_BYTES_PER_WEIGHT = 20
"""Weights, gradients and two moments of AdamW, and the weights of the reference, in float32."""
_OTHER_BYTES = 1 << 30
"""Program, pairs and one forward of a short batch."""


@dataclass(frozen=True)
class KnownModel:
    """Model on the Hub with a chat template.

    Attributes:
        name: "hf:ORG/NAME".
        parameters: number of weights; a tied head counts once.
        license: of the weights, as the model card states it.
        about: one line about the model.
    """

    name: str
    parameters: int
    license: str
    about: str

    @property
    def needed_bytes(self) -> int:
        """Estimated memory of a training run."""
        return _BYTES_PER_WEIGHT * self.parameters + _OTHER_BYTES


@dataclass(frozen=True)
class KnownData:
    """Preference pairs on the Hub; `name` and `about` as for a model."""

    name: str
    license: str
    about: str


_APACHE, _MIT, _SEE_PAGE = "Apache-2.0", "MIT", "license: see its page"

MODELS = (
    KnownModel(
        f"{PREFIX}jingyaogong/MiniMind2-Small", 25_829_888, _SEE_PAGE, "Chinese, some English"
    ),
    KnownModel(
        f"{PREFIX}jingyaogong/minimind-3", 63_900_000, _SEE_PAGE, "Chinese and English, thinks"
    ),
    KnownModel(f"{PREFIX}jingyaogong/MiniMind2", 104_000_000, _SEE_PAGE, "Chinese, some English"),
    KnownModel(f"{PREFIX}HuggingFaceTB/SmolLM2-135M-Instruct", 134_500_000, _APACHE, "English"),
    KnownModel(f"{PREFIX}HuggingFaceTB/SmolLM2-360M-Instruct", 361_800_000, _APACHE, "English"),
    KnownModel(
        f"{PREFIX}Qwen/Qwen2.5-0.5B-Instruct", 494_000_000, _APACHE, "Chinese, English and others"
    ),
    KnownModel(
        f"{PREFIX}Qwen/Qwen3-0.6B", 596_000_000, _APACHE, "Chinese, English and others, thinks"
    ),
    KnownModel(
        f"{PREFIX}Qwen/Qwen2.5-1.5B-Instruct",
        1_540_000_000,
        _APACHE,
        "Chinese, English and others",
    ),
    KnownModel(f"{PREFIX}HuggingFaceTB/SmolLM2-1.7B-Instruct", 1_710_000_000, _APACHE, "English"),
)
"""Sorted by size."""

DATA = (
    KnownData(f"{PREFIX}hiyouga/DPO-En-Zh-20k:en", _SEE_PAGE, "10,000 pairs, English"),
    KnownData(f"{PREFIX}hiyouga/DPO-En-Zh-20k:zh", _SEE_PAGE, "10,000 pairs, Chinese"),
    KnownData(f"{PREFIX}HuggingFaceH4/ultrafeedback_binarized", _MIT, "61,135 pairs, English"),
)


def fitting_models(free_bytes: int) -> list[KnownModel]:
    """Return the models whose training fits into this much memory; at least the smallest."""
    return [model for model in MODELS if model.needed_bytes <= free_bytes] or [MODELS[0]]


def parameters_of(name: str) -> int | None:
    """Return the number of weights of a known model at any revision; None for another name."""
    repository = name.partition("@")[0]
    return next((model.parameters for model in MODELS if model.name == repository), None)
