"""What the GPU benchmark measures, in which order, and how many operations it takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from gpu_rows import READOUT, READOUT_WAYS
from shapes import Shape

TOKENS = {
    "gpt2-small": 131072, "pythia-410m": 65536, "pythia-1.4b": 32768, "pythia-6.9b": 16384,
    "llama-3.1-8b": 16384, "gemma-2-9b": 16384,
}  # fmt: skip
"""Tokens that ours is timed on."""

SHARES = {"ours": 1, "compiled": 1, "floor": 2, "loop": 4, "lens": 4, "authors": 32}
"""What part of these tokens a way is timed on, as a divisor: a rate needs no more."""

LOGITS_AT_ONCE = 2**28
"""Logits that a plain way holds at once."""


@dataclass(frozen=True)
class Case:
    """Something to measure."""

    shape: str
    way: str
    tokens: int


def cases(only: Sequence[str], tiny: bool) -> Iterator[Case]:
    """Yield what is to be measured, the most telling first."""

    def case(shape: str, way: str) -> Case:
        return Case(shape, way, 128 if tiny else TOKENS[shape] // SHARES[way])

    # Compiling tiny blocks takes longer than everything else.
    ours = ["ours", "floor"] if tiny else ["ours", "floor", "compiled"]
    order = [case("pythia-6.9b", "ours")]
    for tokens in (8192, 4096, 16384, 2048):
        size = tokens // 64 if tiny else tokens
        order += [Case(READOUT, way, size) for way in READOUT_WAYS]
    # Each model is built three times at most: first what is ours for all, then the plain ways.
    order += [case("pythia-6.9b", way) for way in ours[1:]]
    for shape in ("llama-3.1-8b", "gpt2-small", "gemma-2-9b", "pythia-410m", "pythia-1.4b"):
        order += [case(shape, way) for way in ours]
    for shape in ("gpt2-small", "pythia-6.9b", "llama-3.1-8b", "pythia-410m", "pythia-1.4b",
                  "gemma-2-9b"):  # fmt: skip
        order += [case(shape, "loop"), case(shape, "authors")]
    order.append(case("gpt2-small", "lens"))
    for each in order:
        if not only or each.shape in only:
            yield each


def passes(layers: int, way: str) -> int:
    """Return how often a plain way runs the model on a token."""
    runs = 2 * layers - 1
    return {"loop": runs + 1, "lens": runs + 1, "authors": 2 * runs}[way]


def operations_of(shape: Shape, case: Case, context: int) -> float:
    """Return the operations of products that a case takes, from its configuration alone.

    A weight takes two for each token that passes it; attention is counted as in
    `robustness.runs.operations`, and the head once for every prediction.
    """
    config = shape.config(context)
    layers, width, vocabulary = config.num_hidden_layers, config.hidden_size, config.vocab_size
    if case.shape == READOUT:
        return 2.0 * case.tokens * width * vocabulary * (2 if case.way == "paired" else 1)
    block = shape.build(context, "meta", torch.bfloat16, layers=1).get_submodule(shape.blocks)
    numbers = sum(part.numel() for part in block.parameters() if part.ndim > 1)
    heads = config.num_attention_heads
    of_heads = heads * (getattr(config, "head_dim", None) or width // heads)
    of_block = 2.0 * numbers + 4.0 * context * of_heads
    of_head = 2.0 * width * vocabulary * (context - 2) / context
    if case.way in ("ours", "compiled", "floor"):
        return case.tokens * (layers**2 * of_block + 2 * layers * of_head)
    return case.tokens * passes(layers, case.way) * (layers * of_block + of_head)


def sequences_together(shape: Shape, context: int) -> int:
    """Return how many sequences a plain way runs at once."""
    return max(1, LOGITS_AT_ONCE // (context * shape.config(context).vocab_size))
