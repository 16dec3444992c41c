"""Tiny models of five families with random weights, and the same models rebuilt by surgery."""

import copy

import torch
from surgery import rebuild
from torch.nn import Module
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Olmo2Config,
    OlmoConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from robustness.schedule import Step

LAYERS = 4
VOCABULARY = 101
CONTEXT = 32

_ROTARY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "initializer_range": 0.4,
}

CONFIGS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=32,
        n_layer=LAYERS,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.4,
    ),
    "gpt_neox": GPTNeoXConfig(**_ROTARY, use_parallel_residual=True),
    "llama": LlamaConfig(**_ROTARY, num_key_value_heads=2),
    "qwen2": Qwen2Config(
        **_ROTARY,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=2,
    ),
    "phi": PhiConfig(**_ROTARY),
}
"""By model type. Qwen2's later blocks have a sliding window, so its masks differ by block."""

BLOCKS = {
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "llama": "model.layers",
    "qwen2": "model.layers",
    "phi": "model.layers",
}


def tiny(family: str, dtype: torch.dtype = torch.float64, attention: str = "sdpa") -> Module:
    """Return a small model with large random weights, so that every block and norm matters."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(
        copy.deepcopy(CONFIGS[family]), attn_implementation=attention, dtype=dtype
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif parameter.ndim == 1:
                parameter.normal_(mean=1, std=0.3)
    return model.eval()


OTHERS: dict[str, PreTrainedConfig] = {
    "gemma": GemmaConfig(**_ROTARY, num_key_value_heads=2, head_dim=8),
    "olmo": OlmoConfig(**_ROTARY, pad_token_id=0),
    "olmo2": Olmo2Config(**_ROTARY, pad_token_id=0),
    "falcon": FalconConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4,
        bos_token_id=0, eos_token_id=0, initializer_range=0.4,
    ),
    "bloom": BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=LAYERS, n_head=4, bos_token_id=0,
        eos_token_id=0, initializer_range=0.4,
    ),
}  # fmt: skip
"""Families that do something in another way: gains that exceed 1, norms without weights, norms
after sublayers, sums in place, sublayers that add the residual stream themselves."""


def other(family: str) -> Module:
    """Return a small model of one of the other families."""
    torch.manual_seed(1)
    config = copy.deepcopy(OTHERS[family])
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


def rebuilt(model: Module, schedule: tuple[Step, ...]) -> Module:
    """Return a plain transformers model whose module list is the schedule."""
    return rebuild(model, BLOCKS[model.config.model_type], schedule)


def random_tokens(sequences: int, length: int, seed: int = 0) -> torch.Tensor:
    """Return token ids of shape (sequence, token)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (sequences, length), generator=generator)
