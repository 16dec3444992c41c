"""Untrained models and their optimisers."""

from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig

from recipes.training.distillation_settings import Distillation
from recipes.training.settings import Pretraining
from recipes.training.tokenizer import size_of
from robustness.errors import Refusal


def check_memory(settings: Pretraining, vocabulary: int) -> None:
    """Refuse a model whose training does not fit into the memory of this machine."""
    # A block has about 12 width² weights: 4 in attention and 8 in the MLP.
    weights = 12 * settings.layers * settings.width**2 + vocabulary * settings.width
    # In float32: weights, gradients and two moments; the logits of a step and their gradients.
    needed = 16 * weights + 8 * settings.batch * settings.context * vocabulary
    memory = psutil.virtual_memory().total
    if needed > memory:
        raise Refusal(
            f"training takes more than {needed / 1e9:,.0f} GB of memory, and there are "
            f"{memory / 1e9:,.0f} GB: lower `layers`, `width`, `batch` or `context`"
        )


def build_model(settings: Pretraining, tokenizer: Any) -> Any:
    """Return an untrained model, float32, in training mode, with weights drawn from the seed."""
    torch.manual_seed(settings.seed)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if settings.architecture == "gpt2":
        config: Any = GPT2Config(
            vocab_size=size_of(tokenizer),
            n_positions=settings.context,
            n_embd=settings.width,
            n_layer=settings.layers,
            n_head=settings.heads,
            # GPT2Config has dropout by default, GPTNeoXConfig has none.
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            **special,
        )
    else:
        config = GPTNeoXConfig(
            vocab_size=size_of(tokenizer),
            max_position_embeddings=settings.context,
            hidden_size=settings.width,
            intermediate_size=4 * settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            use_parallel_residual=True,
            **special,
        )
    return AutoModelForCausalLM.from_config(config).train()


def build_optimizer(model: Any, settings: Pretraining | Distillation) -> torch.optim.AdamW:
    """Return AdamW of what is trained of a model, with weight decay on matrices alone."""
    matrices: dict[str, Any] = {"params": [], "weight_decay": settings.weight_decay}
    others: dict[str, Any] = {"params": [], "weight_decay": 0.0}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        group = matrices if parameter.ndim >= 2 else others
        group["params"].append(parameter)
    groups = [matrices, others]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)
