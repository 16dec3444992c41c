"""Shapes of well-known models, built with random weights on the device that they are for."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Module
from transformers import AutoConfig, AutoModelForCausalLM


@dataclass(frozen=True)
class Shape:
    """A configuration, and where the list of blocks is."""

    kind: str
    blocks: str
    settings: dict[str, Any]

    def config(self, context: int, layers: int | None = None) -> Any:
        """Return the configuration for sequences of a length, of some of the layers or of all."""
        tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        length = {"n_positions" if self.kind == "gpt2" else "max_position_embeddings": context}
        settings = self.settings | tokens | length
        if layers is not None:
            settings |= {"n_layer" if self.kind == "gpt2" else "num_hidden_layers": layers}
        return AutoConfig.for_model(self.kind, **settings)

    def build(
        self, context: int, device: str, dtype: torch.dtype, layers: int | None = None
    ) -> Module:
        """Return a model with random weights, made on the device."""
        torch.manual_seed(0)
        with warnings.catch_warnings(), torch.device(device):
            warnings.simplefilter("ignore")
            config = self.config(context, layers)
            return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def _gpt2(layers: int, width: int, heads: int, vocabulary: int) -> Shape:
    settings = {"n_layer": layers, "n_embd": width, "n_head": heads, "vocab_size": vocabulary}
    return Shape("gpt2", "transformer.h", settings)


def _rotary(kind: str, sizes: tuple[int, ...], **others: Any) -> Shape:
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
             "vocab_size")  # fmt: skip
    path = "gpt_neox.layers" if kind == "gpt_neox" else "model.layers"
    return Shape(kind, path, {**dict(zip(names, sizes, strict=True)), **others})


_GEMMA = {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}

SHAPES = {
    "gpt2-small": _gpt2(12, 768, 12, 50257),
    "pythia-410m": _rotary("gpt_neox", (24, 1024, 16, 4096, 50304)),
    "pythia-1.4b": _rotary("gpt_neox", (24, 2048, 16, 8192, 50304)),
    "pythia-6.9b": _rotary("gpt_neox", (32, 4096, 32, 16384, 50432)),
    "llama-3.1-8b": _rotary("llama", (32, 4096, 32, 14336, 128256), num_key_value_heads=8),
    "gemma-2-9b": _rotary(
        "gemma2", (42, 3584, 16, 14336, 256000), num_key_value_heads=8, head_dim=256, **_GEMMA
    ),
}

TINY = {
    "gpt2-small": _gpt2(4, 64, 4, 512),
    "pythia-410m": _rotary("gpt_neox", (3, 64, 4, 128, 512)),
    "pythia-1.4b": _rotary("gpt_neox", (4, 64, 4, 128, 512)),
    "pythia-6.9b": _rotary("gpt_neox", (4, 64, 4, 256, 512)),
    "llama-3.1-8b": _rotary("llama", (4, 64, 4, 128, 1024), num_key_value_heads=2),
    "gemma-2-9b": _rotary(
        "gemma2", (4, 64, 4, 128, 1024), num_key_value_heads=2, head_dim=16, **_GEMMA
    ),
}
"""Models of the same kinds that any machine runs in a moment."""


def head_alone(width: int, vocabulary: int) -> Shape:
    """Return a shape that is hardly more than its head."""
    return _rotary("llama", (2, width, 1, 32, vocabulary), num_key_value_heads=1, head_dim=16)
