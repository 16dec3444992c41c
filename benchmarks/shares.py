"""Shows where the time of a drop and swap sweep goes: the shares of torch's operations.

Random weights, random tokens, the processor's time; the profiler itself costs a little. Loading and
checking the model is not counted.

    python benchmarks/shares.py gpt2-small --tokens 512
    python benchmarks/shares.py qwen2.5-0.5b --tokens 256 --layers 0 1 11 12
"""

import argparse
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM
from ways import CONTEXT, make_corpus

from robustness.models.opening import open_model
from robustness.sweeps import sweep

SHAPES = {
    "gpt2-small": ("gpt2", {"n_positions": CONTEXT}),
    "qwen2.5-0.5b": (
        "qwen2",
        {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": True,
        },
    ),
}

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product", "aten::_softmax"),
    "exponentials of logits": ("aten::exp",),
    "largest logits": ("aten::max",),
    "activations": ("aten::tanh", "aten::pow", "aten::silu", "aten::gelu"),
    "adding and multiplying": ("aten::add", "aten::mul", "aten::sub", "aten::sum"),
    "copying": ("aten::copy_", "aten::cat"),
}
"""Beginnings of operations' names."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--layers", type=int, nargs="+", help="that are changed; all without it")
    options = parser.parse_args()
    kind, settings = SHAPES[options.shape]
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval()
    model, corpus = open_model(net), make_corpus(options.tokens, net.config.vocab_size)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        sweep(model, corpus, layers=options.layers)
    shares: Counter[str] = Counter()
    for event in profiled.key_averages():
        if event.key.startswith("aten::"):
            names = (name for name, starts in KINDS.items() if event.key.startswith(starts))
            shares[next(names, "the rest")] += event.self_cpu_time_total
    total = shares.total()
    print(f"{options.shape}, {options.tokens} tokens, {torch.get_num_threads()} threads")
    for name, share in shares.most_common():
        print(f"{name:24} {share / total:6.1%}")


if __name__ == "__main__":
    main()
