"""Which shapes fit which card, by the model of memory that sizes the batches of a run on a GPU.

Nothing is computed on a card. The bytes of weights follow from a configuration, those of states
from the plan of drop and swap, those of a call from a block's matrices (`robustness.runs.sizes`).
What the last two foretell is compared with the tensors that are alive in sweeps on the CPU with
`--check`.

    python benchmarks/card_sizes.py
    python benchmarks/card_sizes.py --check
"""

import argparse
from dataclasses import dataclass

import torch
from shapes import SHAPES, Shape
from ways import CONTEXT, make_corpus

from robustness.models.intermediates import numbers_of_token
from robustness.models.opening import open_model
from robustness.runs import batching, sizes
from robustness.runs.settings import RunOptions
from robustness.schedules import clean
from robustness.schedules.interventions import schedules
from robustness.schedules.plan import compile_plan
from robustness.sweeps import calibration
from robustness.sweeps.live_bytes import LiveBytes
from robustness.sweeps.preparation import prepare
from robustness.sweeps.settings import SweepSettings

CARDS = (8, 16, 24, 40, 80, 141)
"""GiB of memory that cards have."""

CONTEXT_BYTES = 0.7 * 2**30
"""Bytes that CUDA and its libraries take themselves: an estimate."""

ITEMS = {"float32": 4, "bfloat16": 2}

CHECKED = {
    "gpt2-small, 3 of its layers": ("gpt2-small", 3, torch.float32, 1024, 8),
    "pythia-410m, 4 of its layers": ("pythia-410m", 4, torch.bfloat16, 512, 4),
}
"""Shape, layers, type, tokens of text, and states in a call."""


@dataclass(frozen=True)
class Needs:
    """Bytes that a sweep of drop and swap takes."""

    weights: int
    states: int
    """Of all states that are alive at once, for a token of text."""
    call: int
    """Of a call of a block, for each of its tokens."""


def needs(shape: Shape, item: int) -> Needs:
    """Return what a shape takes with numbers of some bytes."""
    whole = shape.build(CONTEXT, "meta", torch.bfloat16)
    weights = sum(part.numel() for part in whole.parameters())
    config = shape.config(CONTEXT)
    layers, width = config.num_hidden_layers, config.hidden_size
    runs = list(schedules(("drop", "swap"), layers).values())
    plan = compile_plan(runs, clean(layers), per_group=batching.SCHEDULES_PER_GROUP)
    # What a block takes for a token does not depend on how many there are.
    few = Shape(shape.kind, shape.blocks, shape.settings | {"vocab_size": 500})
    model = open_model(few.build(CONTEXT, "cpu", torch.bfloat16, layers=2))
    return Needs(weights * item, plan.peak * width * item, numbers_of_token(model, CONTEXT) * item)


def cell(found: Needs, card: int) -> str:
    """Return tokens of text and of a call on a card, or a dash where no sequence fits."""
    free = card * 2**30 - CONTEXT_BYTES - found.weights
    one = CONTEXT * (found.states + found.call)
    if free * sizes.SHARE < one:
        return "–"
    chosen = sizes.fitting(int(free), found.states, found.call, CONTEXT)
    return f"{_thousands(chosen.text)} / {_thousands(chosen.call)}"


def _thousands(count: int) -> str:
    return f"{count // 1024}k" if count >= 1024 else str(count)


def print_table() -> None:
    """Print tokens of text and of a call for every shape, type and card."""
    print("| shape | type | weights, GiB | " + " | ".join(f"{card} GB" for card in CARDS) + " |")
    print("|---|---|--:|" + "--:|" * len(CARDS))
    for name, shape in SHAPES.items():
        for dtype, item in ITEMS.items():
            found = needs(shape, item)
            cells = " | ".join(cell(found, card) for card in CARDS)
            print(f"| {name} | {dtype} | {found.weights / 2**30:.1f} | {cells} |", flush=True)


def check() -> None:
    """Print what is foretold of two sweeps, and the bytes of tensors that were alive in them."""
    print("| sweep | type | text / call | foretold, MiB | alive, MiB | foretold / alive |")
    print("|---|---|--:|--:|--:|--:|")
    for name, (of, layers, dtype, text, cap) in CHECKED.items():
        model = open_model(SHAPES[of].build(CONTEXT, "cpu", dtype, layers=layers))
        options = RunOptions(batch_tokens=text, state_cap=cap)
        work = prepare(model, make_corpus(text, model.vocabulary), SweepSettings(), options)
        plan, matrix = work.plan(cap), model.unembedding()
        with torch.no_grad(), LiveBytes() as live:
            calibration.measure_batch(work, work.batches[0], plan, matrix)
        item = calibration.item_bytes(model)
        stacked = max(len(sources) for _, _, sources, *_ in plan.rows)
        call = stacked * text
        foretold = text * plan.peak * model.width * item
        strips = calibration.STRIPS_AT_ONCE * calibration.strip_bytes(
            work, plan, text // CONTEXT, CONTEXT
        )
        foretold += max(call * numbers_of_token(model, CONTEXT) * item, strips)
        print(
            f"| {name} | {str(dtype).removeprefix('torch.')} | {text:,} / {call:,} | "
            f"{foretold / 2**20:.0f} | {live.most / 2**20:.0f} | {foretold / live.most:.2f} |",
            flush=True,
        )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check() if parser.parse_args().check else print_table()


if __name__ == "__main__":
    main()
