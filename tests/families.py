"""Tiny models of many families with random weights, and the same models rebuilt by surgery."""

import copy
import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from oracles.surgery import rebuild, unfold
from torch.nn import Module
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from robustness.schedules import Step

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

_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_positions": CONTEXT,
    "n_embd": 32,
    "n_layer": LAYERS,
    "n_head": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "initializer_range": 0.4,
}

_GROUPED = {**_ROTARY, "num_key_value_heads": 2, "pad_token_id": 0}
_WINDOWED = {**_GROUPED, "sliding_window": 5}
_TYPES = {"layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2)}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_FALCON = {
    **{key: value for key, value in _ROTARY.items() if key != "intermediate_size"},
    "ffn_hidden_size": 64,
}
_OPT = {
    **{key: value for key, value in _ROTARY.items() if key != "intermediate_size"},
    "ffn_dim": 64,
    "pad_token_id": 1,
    "init_std": 0.4,
}

SPECS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("gpt2", "transformer.h", _GPT2),
    "gpt_neox": ("gpt_neox", "gpt_neox.layers", {**_ROTARY, "use_parallel_residual": True}),
    "llama": ("llama", "model.layers", {**_ROTARY, "num_key_value_heads": 2}),
    "qwen2": (
        "qwen2",
        "model.layers",
        {
            **_ROTARY, "num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 5,
            "max_window_layers": 2,
        },
    ),
    "phi": ("phi", "model.layers", _ROTARY),
    "bloom": ("bloom", "transformer.h", {**_GPT2, "hidden_size": 32}),
    "codegen": ("codegen", "transformer.h", {**_GPT2, "rotary_dim": 4, "n_ctx": CONTEXT}),
    "cohere": ("cohere", "model.layers", {**_GROUPED, "logit_scale": 0.1}),
    "cohere2": ("cohere2", "model.layers", {**_WINDOWED, **_TYPES, "logit_scale": 0.25}),
    "exaone4": ("exaone4", "model.layers", {**_WINDOWED, **_TYPES}),
    "falcon": ("falcon", "transformer.h", _FALCON),
    "falcon-alibi": (
        "falcon",
        "transformer.h",
        {**_FALCON, "alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
    ),
    "falcon-new": (
        "falcon",
        "transformer.h",
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "gemma": ("gemma", "model.layers", {**_GROUPED, "head_dim": 8}),
    "gemma2": (
        "gemma2",
        "model.layers",
        {
            **_WINDOWED, **_TYPES, "head_dim": 8, "query_pre_attn_scalar": 8,
            "final_logit_softcapping": 4.0, "attn_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        "model.layers",
        {
            **_WINDOWED, **_TYPES, "head_dim": 8, "query_pre_attn_scalar": 8,
            "final_logit_softcapping": 6.0,
        },
    ),
    "gemma4": (
        "gemma4_text",
        "model.layers",
        {
            **_WINDOWED, **_TYPES, "head_dim": 8, "global_head_dim": 8, "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
            "final_logit_softcapping": 5.0,
        },
    ),
    "glm": ("glm", "model.layers", {**_GROUPED, "head_dim": 8}),
    "glm4": ("glm4", "model.layers", {**_GROUPED, "head_dim": 8}),
    "gpt_bigcode": ("gpt_bigcode", "transformer.h", _GPT2),
    "gpt_neo": (
        "gpt_neo",
        "transformer.h",
        {
            **{key: value for key, value in _ROTARY.items() if "num" not in key},
            "num_layers": LAYERS, "num_heads": 4, "window_size": 5,
            "attention_types": [[["global", "local"], LAYERS // 2]],
        },
    ),
    "gptj": ("gptj", "transformer.h", {**_GPT2, "rotary_dim": 4}),
    "granite": (
        "granite",
        "model.layers",
        {
            **_GROUPED, "residual_multiplier": 0.22, "embedding_multiplier": 12.0,
            "logits_scaling": 8.0, "attention_multiplier": 0.2,
        },
    ),
    "mamba": (
        "mamba",
        "backbone.layers",
        {
            "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": LAYERS,
            "state_size": 4, "initializer_range": 0.4, "use_mambapy": False,
        },
    ),
    "mistral": ("mistral", "model.layers", _WINDOWED),
    "mixtral": ("mixtral", "model.layers", {**_WINDOWED, "num_local_experts": 4}),
    "mpt": (
        "mpt",
        "transformer.blocks",
        {
            "d_model": 32, "n_heads": 4, "n_layers": LAYERS, "vocab_size": VOCABULARY,
            "max_seq_len": CONTEXT, "initializer_range": 0.4,
        },
    ),
    "nemotron": ("nemotron", "model.layers", _GROUPED),
    "olmo": ("olmo", "model.layers", {**_ROTARY, "pad_token_id": 0}),
    "olmo2": ("olmo2", "model.layers", _GROUPED),
    "olmo3": ("olmo3", "model.layers", {**_WINDOWED, **_TYPES}),
    "olmoe": ("olmoe", "model.layers", {**_GROUPED, **_EXPERTS}),
    "openai-gpt": ("openai-gpt", "transformer.h", _GPT2),
    "opt": ("opt", "model.decoder.layers", _OPT),
    "opt-350m": (
        "opt",
        "model.decoder.layers",
        {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16},
    ),
    "opt-projected": ("opt", "model.decoder.layers", {**_OPT, "word_embed_proj_dim": 16}),
    "persimmon": ("persimmon", "model.layers", _ROTARY),
    "phi3": ("phi3", "model.layers", _WINDOWED),
    "qwen3": ("qwen3", "model.layers", {**_WINDOWED, "use_sliding_window": True, **_TYPES}),
    "qwen3_moe": ("qwen3_moe", "model.layers", {**_GROUPED, **_EXPERTS, "head_dim": 8}),
    "smollm3": ("smollm3", "model.layers", {**_GROUPED, "no_rope_layers": [1, 0, 1, 0]}),
    "stablelm": ("stablelm", "model.layers", _GROUPED),
    "stablelm-parallel": (
        "stablelm",
        "model.layers",
        {**_GROUPED, "use_parallel_residual": True, "qk_layernorm": True},
    ),
    "starcoder2": ("starcoder2", "model.layers", _WINDOWED),
}  # fmt: skip
"""By name the type, where the list of blocks is, and a configuration. Sliding windows are shorter
than the texts of tests, types of blocks alternate, and caps and factors are far from what changes
nothing."""

DEEP = ("gpt2", "gpt_neox", "llama", "phi", "qwen2")
"""Families on which every test is run; on the others those of `test_families`."""

DIFFERENT = DEEP if os.environ.get("STAGES_FUZZ") == "1" else ("gpt2", "gpt_neox", "qwen2")
"""Those of `DEEP` that differ in more than names: Llama is Qwen2 without windows and biases, and
Phi GPT-NeoX with one norm for both sublayers. For tests of what goes by neither."""

BLOCKS = {name: path for name, (_, path, _) in SPECS.items()}


def config(family: str) -> PreTrainedConfig:
    """Return the tiny configuration of a family."""
    kind, _, settings = SPECS[family]
    return AutoConfig.for_model(kind, **copy.deepcopy(settings))


def tiny(family: str, dtype: torch.dtype = torch.float64, attention: str | None = None) -> Module:
    """Return a small model with large random weights, so that every block and norm matters."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        # GPT-BigCode's module compiles functions in a way that torch does not like any more.
        warnings.simplefilter("ignore", DeprecationWarning)
        model = AutoModelForCausalLM.from_config(
            config(family), attn_implementation=attention, dtype=dtype
        )
    if dtype == torch.float64:
        model.set_experts_implementation("eager")
    model.family = family
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif parameter.ndim == 1:
                parameter.normal_(mean=1, std=0.3)
    return model.eval()


def rebuilt(model: Module, schedule: tuple[Step, ...]) -> Module:
    """Return a plain transformers model whose module list is the schedule."""
    path = BLOCKS[getattr(model, "family", model.config.model_type)]
    edited = rebuild(model, path, schedule)
    follow_blocks(edited, [at for step in schedule for at, _ in unfold(step)])
    return edited


def follow_blocks(edited: Module, schedule: Sequence[int], layers: int = LAYERS) -> None:
    """Let what Gemma 4 makes of the tokens for every layer follow the blocks, as a context does."""

    def with_all(part: Any, method: Any) -> Any:
        def call(*args: Any) -> Any:
            part.config.num_hidden_layers = layers
            found = method(*args)
            part.config.num_hidden_layers = len(schedule)
            return found

        return call

    for part in edited.modules():
        if hasattr(part, "project_per_layer_inputs"):
            project = with_all(part, part.project_per_layer_inputs)
            part.get_per_layer_inputs = with_all(part, part.get_per_layer_inputs)
            part.project_per_layer_inputs = lambda *args, project=project: project(*args)[
                :, :, list(schedule)
            ]


def random_tokens(sequences: int, length: int, seed: int = 0) -> torch.Tensor:
    """Return token ids of shape (sequence, token)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (sequences, length), generator=generator)
