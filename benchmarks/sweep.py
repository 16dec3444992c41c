"""Times a sweep, of drop and swap unless told, against its floor and two plain ways of doing it.

All four run in one process, in turn, on the same random weights, tokens and metrics:

ours     robustness.sweeps.sweep
floor    the matrix products of ours alone: no attention softmax, no norms, no metrics
authors  the paper's way: for every intervention and document a clean pass and a changed one,
         full log-softmax of both
loop     a good loop over plain transformers: documents batched, one clean pass kept, the module
         list rebuilt for every schedule, full log-softmax

`--compile` lets ours run compiled blocks, which are compiled before the clock starts. The last line
is the row for the table in README.md.

`--memory` instead runs each in a process of its own and prints how far it raised the peak.

    python benchmarks/sweep.py --shape gpt2-small --rounds 3
    python benchmarks/sweep.py --compile --dtype bfloat16 --only ours floor
    python benchmarks/sweep.py --interventions attention-drop mlp-drop --only ours floor
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module, ModuleList
from transformers import GPT2Config, GPT2LMHeadModel
from ways import CONTEXT, authors, loop, make_corpus

from robustness.models.opening import open_model
from robustness.schedules import Attention, Mlp, Parallel, Schedule, Step, clean, leaves
from robustness.schedules.interventions import schedules
from robustness.schedules.plan import compile_plan
from robustness.sweeps import sweep
from robustness.text.corpus import Corpus
from robustness.trace.paired import columns_at_once

SHAPES = {
    "gpt2-small": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257},
    "gpt2-medium": {"n_layer": 24, "n_embd": 1024, "n_head": 16, "vocab_size": 50257},
    "tiny": {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 2048},
}


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def build(shape: str, dtype: torch.dtype = torch.float32) -> GPT2LMHeadModel:
    """Return a model of a shape with random weights."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_positions=CONTEXT, **SHAPES[shape])).eval().to(dtype)


class Executed(Module):
    """A step that is no block, of blocks of GPT-2."""

    def __init__(self, step: Step, blocks: ModuleList) -> None:
        super().__init__()
        self.step = step
        members = step.steps if isinstance(step, Parallel) else ()
        self.members = ModuleList(executed(member, blocks) for member in members)
        self.block = None if members else blocks[step.block]

    def forward(self, hidden: Tensor, past: Any, mask: Any, *rest: Any, **named: Any) -> Tensor:
        """Execute it as a block is executed."""
        if self.members:
            outs = [member(hidden, past, mask, *rest, **named) for member in self.members]
            return sum(outs) / len(outs)
        if isinstance(self.step, Attention):
            return hidden + self.block.attn(self.block.ln_1(hidden), attention_mask=mask)[0]
        return hidden + self.block.mlp(self.block.ln_2(hidden))


def executed(step: Step, blocks: ModuleList) -> Module:
    """Return the module that executes a step."""
    return blocks[step] if isinstance(step, int) else Executed(step, blocks)


@contextmanager
def surgery(model: GPT2LMHeadModel, schedule: Schedule) -> Any:
    """Let the model execute a schedule by rebuilding its module list."""
    blocks = model.transformer.h
    model.transformer.h = ModuleList(executed(step, blocks) for step in schedule)
    try:
        yield
    finally:
        model.transformer.h = blocks


def floor(model: GPT2LMHeadModel, corpus: Corpus, runs: Sequence[Schedule]) -> None:
    """Compute the matrix products that ours computes, in their fastest form, and nothing else."""
    config, count = model.config, corpus.tokens.size
    width, heads = config.n_embd, config.n_head
    sequences, dtype = len(corpus.tokens), model.dtype
    state = torch.randn(count, width, dtype=dtype)
    wide = torch.randn(count, 4 * width, dtype=dtype)
    query = torch.randn(sequences * heads, CONTEXT, width // heads, dtype=dtype)
    pattern = torch.randn(sequences * heads, CONTEXT, CONTEXT, dtype=dtype)
    whole = clean(config.n_layer)
    prefixes = {run[:end] for run in runs for end in range(1, len(run) + 1)}
    computed = [prefix for prefix in prefixes if prefix != whole[: len(prefix)]]
    assert len(computed) == compile_plan(runs, whole).applications
    for leaf in (*whole, *(leaf for prefix in computed for leaf in leaves(prefix[-1]))):
        block = model.transformer.h[leaf if isinstance(leaf, int) else leaf.block]
        if not isinstance(leaf, Mlp):
            torch.mm(state, block.attn.c_attn.weight)
            torch.bmm(query, query.transpose(1, 2))
            torch.bmm(pattern, query)
            torch.mm(state, block.attn.c_proj.weight)
        if not isinstance(leaf, Attention):
            torch.mm(state, block.mlp.c_fc.weight)
            torch.mm(wide, block.mlp.c_proj.weight)
    read = sequences * (CONTEXT - 2)
    state, matrix = state[:read], model.lm_head.weight
    strip = columns_at_once(read, width, "cpu")
    for _ in {whole, *runs}:
        for start in range(0, len(matrix), strip):
            torch.mm(state, matrix[start : start + strip].T)
    for start in range(0, len(matrix), strip):
        part = matrix[start : start + strip]
        torch.mm(state.new_ones(read, len(part)), part)


def ways(
    shape: str, tokens: int, names: Sequence[str], dtype: str = "float32", compile: bool = False
) -> dict[str, Callable[[], Any]]:
    """Return what is compared."""
    model = build(shape, getattr(torch, dtype))
    opened = open_model(model, compile=compile, notify=print)
    corpus = make_corpus(tokens, model.config.vocab_size)
    if compile:
        # Code for other shapes than those of the trial is compiled now.
        sweep(opened, corpus, names, layers=(0, 1))
    ids = torch.from_numpy(corpus.tokens)
    runs = list(schedules(names, model.config.n_layer).values())

    def forward(rows: Tensor) -> Tensor:
        return model(rows, use_cache=False).logits

    return {
        "ours": lambda: sweep(opened, corpus, names),
        "floor": lambda: floor(model, corpus, runs),
        "authors": lambda: authors(forward, partial(surgery, model), ids, runs),
        "loop": lambda: loop(forward, partial(surgery, model), ids, runs),
    }


def check(ours: Any, other: Tensor) -> float:
    """Return the largest difference between our readouts and another way's."""
    names = ("kl", "agreement", "loss", "entropy", "accuracy")
    worst = []
    for name, values in zip(names, other, strict=True):
        dims = [dim for dim in ours[name].dims if dim != "sequence"]
        stacked = ours[name].stack(run=dims).dropna("run", how="all")
        found = stacked.transpose("run", "sequence").values
        worst.append(np.abs(found - values.numpy()).max())
    # Unlike max(), it hands on what is not a number.
    return float(np.max(worst))


def raised(way: str, shape: str, tokens: int, names: Sequence[str]) -> None:
    """Print by how many MiB a way raises the peak memory of a process that has warmed up."""
    found = ways(shape, tokens, names)
    ways("tiny", CONTEXT, names)[way]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.no_grad():
        found[way]()
    print(f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:.0f}")


def time_ways(options: argparse.Namespace) -> None:
    """Time all ways in turn, and print their seconds, ratios and the row of the table."""
    sizes = (options.shape, options.tokens, options.interventions)
    found = ways(*sizes, options.dtype, options.compile)
    seconds: dict[str, list[float]] = {way: [] for way in options.only}
    results = {}
    clock = CLOCKS[options.clock]
    with torch.no_grad():
        for _ in range(options.rounds):
            for way in options.only:
                start = clock()
                results[way] = found[way]()
                seconds[way].append(clock() - start)
    kind = f"{options.shape}, {options.dtype}{', compiled' if options.compile else ''}"
    threads = torch.get_num_threads()
    print(f"{kind}, {options.tokens} tokens, {threads} threads, {options.clock} seconds")
    for way in options.only:
        compared = ratio(seconds, way, options.only[0])
        print(f"{way:8} {statistics.median(seconds[way]):8.2f} s   {compared} × {options.only[0]}")
    if {"ours", "loop"} <= results.keys():
        print(f"largest difference, ours and loop: {check(results['ours'], results['loop']):.1e}")
    cells = [kind, f"{options.tokens:,}"]
    for way in ("ours", "floor", "loop", "authors"):
        cells.append(f"{statistics.median(seconds[way]):.1f} s" if way in seconds else "–")
    for pair in (("ours", "floor"), ("loop", "ours"), ("authors", "ours")):
        cells.append(ratio(seconds, *pair))
    print(f"| {' | '.join(cells)} |")


def ratio(seconds: dict[str, list[float]], way: str, other: str) -> str:
    """Return the median ratio of two ways in the same round, as text."""
    if not {way, other} <= seconds.keys():
        return "–"
    ratios = [a / b for a, b in zip(seconds[way], seconds[other], strict=True)]
    return f"{statistics.median(ratios):.2f}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="gpt2-small")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=["ours", "floor", "authors", "loop"])
    parser.add_argument("--interventions", nargs="+", default=["drop", "swap"])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="seconds that are counted")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--raised", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.raised:
        return raised(options.raised, options.shape, options.tokens, options.interventions)
    if options.memory:
        for way in options.only:
            command = [sys.executable, __file__, "--raised", way, "--shape", options.shape]
            done = subprocess.run(
                [
                    *command,
                    "--tokens",
                    str(options.tokens),
                    "--interventions",
                    *options.interventions,
                ],
                capture_output=True,
                check=True,
            )
            print(f"{way:8} raises the peak by {done.stdout.decode().strip():>6} MiB", flush=True)
        return None
    time_ways(options)
    return None


if __name__ == "__main__":
    main()
