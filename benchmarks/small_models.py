"""Trains small decoders of families beyond the built-in ones, for benchmarks that need weights.

    python benchmarks/small_models.py DIRECTORY --data FILE … [--family qwen3 gemma2] [--tokens N]

Twelve blocks of width 128, as the built-in models have, with their tokenizer and recipe; each is
written to DIRECTORY/FAMILY in float32.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Qwen3Config

from recipes.training import text
from recipes.training.loss import held_out_loss
from recipes.training.settings import Pretraining
from recipes.training.untrained import build_optimizer
from robustness.models import checkpoint

SHAPE = {
    "hidden_size": 128,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
"""Settings that the families share."""

FAMILIES = {
    # With norms of queries and keys.
    "qwen3": lambda size: Qwen3Config(vocab_size=size, intermediate_size=384, **SHAPE),
    # With norms after sublayers too, scaled embeddings, and soft caps.
    "gemma2": lambda size: Gemma2Config(
        vocab_size=size,
        intermediate_size=384,
        query_pre_attn_scalar=32,
        sliding_window=128,
        **SHAPE,
    ),
}
"""Functions from the number of tokens of a vocabulary to a configuration, by family."""


def train(family: str, data: text.Texts, settings: Pretraining) -> Any:
    """Return a trained model of a family, in float32."""
    torch.manual_seed(settings.seed)
    config = FAMILIES[family](data.vocabulary)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()
    optimizer = build_optimizer(model, settings)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        tokens = data.batch(step, seed=settings.seed, size=settings.batch, context=settings.context)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad()
        if not math.isfinite(loss.item()):
            raise SystemExit(f"{family}: the loss is no number at step {step + 1}")
        if (step + 1) % 100 == 0:
            print(f"{family}: step {step + 1} of {settings.steps}, loss {loss.item():.3f}")
    return model.eval()


def main() -> None:
    """Train the models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--family", choices=FAMILIES, nargs="+", default=list(FAMILIES))
    parser.add_argument("--tokens", type=int, default=2_000_000)
    options = parser.parse_args()
    settings = Pretraining(tokens=options.tokens, batch=8)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.resolve("builtin")[1])
    sources = []
    for path in options.data:
        sources.append(text.read(path, seed=settings.seed, held_out=settings.held_out))
    data = text.encode(sources, text.share((), len(sources)), settings.context, tokenizer)
    for family in options.family:
        model = train(family, data, settings)
        losses = held_out_loss(model, data, settings)
        told = ", ".join(f"{name} {loss:.3f}" for name, loss in zip(data.names, losses))
        print(f"{family}: held-out loss in nats: {told}")
        model.save_pretrained(options.directory / family)
        tokenizer.save_pretrained(options.directory / family)


if __name__ == "__main__":
    main()
