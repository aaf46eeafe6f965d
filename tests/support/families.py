"""Tiny random models of many families in transformers."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import GenerationConfig, PreTrainedModel

from dpo_cli.compute.device import Device
from dpo_cli.models import attention

VOCABULARY = 97
POSITIONS = 128
CPU = Device(torch.device("cpu"), torch.float32)
TOKENS = 24
"""Number of tokens that `transformers_tokens` generates."""

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": None,
    "attention_dropout": 0.0,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
_GPT2 |= {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _COMMON),
    "qwen2": ("Qwen2Config", _COMMON),
    "qwen3": ("Qwen3Config", {**_COMMON, "head_dim": 12}),
    "qwen3-moe": ("Qwen3MoeConfig", {**_COMMON, **_EXPERTS, "head_dim": 12}),
    "gpt2": ("GPT2Config", _GPT2),
    "mistral": ("MistralConfig", {**_COMMON, "sliding_window": None}),
    "mistral-long-window": ("MistralConfig", {**_COMMON, "sliding_window": 100}),
    "mistral-window": ("MistralConfig", {**_COMMON, "sliding_window": 8}),
    "gemma": ("GemmaConfig", {**_COMMON, "head_dim": 8}),
    "gemma2": ("Gemma2Config", {**_COMMON, "head_dim": 8, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3TextConfig", {**_COMMON, "head_dim": 8, "sliding_window": 8}),
    "gpt-oss": (
        "GptOssConfig",
        {**_COMMON, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "phi-head-bias": ("PhiConfig", _COMMON),
    "cohere-logit-scale": ("CohereConfig", {**_COMMON, "logit_scale": 0.3}),
    "granite-logits-scaling": ("GraniteConfig", {**_COMMON, "logits_scaling": 3.0}),
    "gpt-neox": ("GPTNeoXConfig", {**_COMMON, "hidden_dropout": 0.0}),
    "llama4-chunks": (
        "Llama4TextConfig",
        {
            **_COMMON,
            "head_dim": 8,
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "attention_chunk_size": 8,
        },
    ),
    "lfm2-convolution": ("Lfm2Config", {**_COMMON, "layer_types": ["conv", "full_attention"]}),
    "mamba": (
        "MambaConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    ),
    "bloom-alibi": (
        "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    ),
    "nemotron-old-code": ("NemotronConfig", _COMMON),
}

UNSUPPORTED = {
    "mistral-window": "sliding_window = 8 is shorter than sequences of 40 tokens",
    "gemma2": "Gemma2Attention needs softcap",
    "gemma3": "sliding_window = 8 is shorter than sequences of 40 tokens",
    "gpt-oss": "GptOssAttention needs s_aux",
    "llama4-chunks": "attention_chunk_size = 8 is shorter than sequences of 40 tokens",
    "lfm2-convolution": "it has layers of the type conv",
    "mamba": "it has layers of the type linear_attention",
    "bloom-alibi": "a trial gives other log-probs",
    "nemotron-old-code": "a trial gives other log-probs",
}
"""Families that cannot compute packed rows of up to 40 tokens, with the reason."""


def build(family: str, vocab_size: int = VOCABULARY) -> PreTrainedModel:
    """Build a model of a family in float32 with fixed random weights.

    The weights are large: with a small initialization, attention hardly changes the logits, and
    errors in it would go unnoticed.
    """
    name, settings = FAMILIES[family]
    config = getattr(transformers, name)(**{**settings, "vocab_size": vocab_size})
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=attention.NAME
    )
    generator = torch.Generator().manual_seed(11)
    for parameter in model.parameters():
        spread = 0.3 if parameter.ndim > 1 else 0.1
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = (noise * spread + (parameter.ndim == 1)).to(parameter.dtype)
    return model


def transformers_tokens(
    model: PreTrainedModel, prompt: torch.Tensor, end_id: int | None
) -> list[int]:
    """Generate greedily with transformers."""
    model.generation_config.eos_token_id = None  # the default if `config` names none
    config = GenerationConfig(
        do_sample=False, max_new_tokens=TOKENS, eos_token_id=end_id, pad_token_id=0, use_cache=True
    )
    ids = prompt.unsqueeze(0)
    output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return output[0, len(prompt) :].tolist()
