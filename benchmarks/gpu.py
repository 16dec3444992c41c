"""Times sweeps and readouts on a GPU, with random weights in the shapes of well-known models.

For every shape, drop and swap together on random tokens, 256 in a sequence:

ours     robustness.sweeps.sweep
floor    the matrix products of ours alone, in the type of the weights
loop     a good loop over plain transformers: one clean pass kept, full log-softmax
authors  the paper's way: a clean and a changed pass for every intervention and document
lens     the same loop over TransformerLens, if it is installed

and for a head of width 4,096 and 131,072 tokens the readout alone: `clean`, loss and entropy, and
`paired`, KL and the rest besides, in milliseconds, beside the public bar (Liger's README).

Every case is saved as soon as it is measured, and is not measured again: a killed run loses the
case at hand. The most telling cases come first, and those that would not end within the budget are
left out and named.

    python benchmarks/gpu.py --budget 240
    python benchmarks/gpu.py --only gpt2-small readout --out outputs/gpu.nc
    python benchmarks/gpu.py --device cpu --tiny --out outputs/gpu-tiny.nc
"""

import argparse
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest import mock

import torch
from card import facts, product_seconds, synchronize, timed
from floors import Products
from gpu_rows import PEAK, READOUT, Row, Rows, print_tables
from shapes import SHAPES, TINY, Shape, head_alone
from torch import Tensor
from ways import CONTEXT, authors, in_order, loop, make_corpus

from robustness.models import hashes
from robustness.models.model import Model
from robustness.models.opening import open_model
from robustness.runs.settings import RunOptions
from robustness.schedules.interventions import schedules
from robustness.sweeps import sweep
from robustness.sweeps.cost import estimate
from robustness.sweeps.preparation import prepare
from robustness.sweeps.settings import SweepSettings
from robustness.trace import readout

NAMES = ("drop", "swap")

TOKENS = {
    "gpt2-small": 131072, "pythia-410m": 65536, "pythia-1.4b": 32768, "pythia-6.9b": 16384,
    "llama-3.1-8b": 16384, "gemma-2-9b": 16384,
}  # fmt: skip
"""Tokens that ours is timed on."""

SHARES = {"ours": 1, "floor": 2, "loop": 4, "lens": 4, "authors": 32}
"""What part of these tokens a way is timed on, as a divisor: a rate needs no more."""

LOGITS_AT_ONCE = 2**28
"""Logits that a plain way holds at once."""

READOUT_TOKENS = (2048, 4096, 8192, 16384)

LIKELY_RATE = 0.3
"""Share of the peak that a case is assumed to run at, when it is decided whether it still fits."""

PASS_SECONDS = 0.01
"""Seconds that a pass through a model is assumed to take however small it is."""

OPENING_SECONDS = 6.0
"""Seconds that building and checking a model is assumed to take."""


@dataclass(frozen=True)
class Case:
    """Something to measure."""

    shape: str
    way: str
    tokens: int


@dataclass
class Bench:
    """The device, and the model that is on it."""

    device: str
    dtype: torch.dtype
    tiny: bool
    shape: str = ""
    model: Model | None = None

    @property
    def context(self) -> int:
        """Tokens of a sequence."""
        return 32 if self.tiny else CONTEXT

    @property
    def head(self) -> tuple[int, int]:
        """Width and vocabulary of the readout."""
        return (64, 1024) if self.tiny else (4096, 131072)

    def described(self, name: str) -> Shape:
        """Return a shape by its name."""
        if name == READOUT:
            return head_alone(*self.head)
        return (TINY if self.tiny else SHAPES)[name]

    def opened(self, name: str) -> Model:
        """Return the model of a shape; the last one is freed for it."""
        if self.shape != name or self.model is None:
            self.shape, self.model = name, None
            gc.collect()
            if self.device.startswith("cuda"):
                torch.cuda.empty_cache()
            module = self.described(name).build(self.context, self.device, self.dtype)
            # Of random numbers a digest says nothing, and takes longer than a measurement.
            with mock.patch.object(hashes, "hash_module", lambda module: "0" * 64):
                self.model = open_model(module)
        return self.model


def cases(only: Sequence[str], tiny: bool) -> Iterator[Case]:
    """Yield what is to be measured, the most telling first."""
    shapes = TINY if tiny else SHAPES

    def case(shape: str, way: str) -> Case:
        return Case(shape, way, 128 if tiny else TOKENS[shape] // SHARES[way])

    order = [case("pythia-6.9b", "ours")]
    for tokens in (8192, 4096, 16384, 2048):
        size = tokens // 64 if tiny else tokens
        order += [Case(READOUT, way, size) for way in ("clean", "paired", "product")]
    # Each model is built twice at most: first what is ours for all, then the plain ways.
    order.append(case("pythia-6.9b", "floor"))
    for shape in ("llama-3.1-8b", "gpt2-small", "gemma-2-9b", "pythia-410m", "pythia-1.4b"):
        order += [case(shape, "ours"), case(shape, "floor")]
    for shape in ("gpt2-small", "pythia-6.9b", "llama-3.1-8b", "pythia-410m", "pythia-1.4b",
                  "gemma-2-9b"):  # fmt: skip
        order += [case(shape, "loop"), case(shape, "authors")]
    order.append(case("gpt2-small", "lens"))
    for each in order:
        if not only or each.shape in only:
            assert each.shape == READOUT or each.shape in shapes
            yield each


def passes(layers: int, way: str) -> int:
    """Return how often a plain way runs the model on a token."""
    runs = 2 * layers - 1
    return {"loop": runs + 1, "lens": runs + 1, "authors": 2 * runs}[way]


def operations_of(shape: Shape, case: Case, context: int) -> float:
    """Return the operations of products that a case takes, from its configuration alone.

    A weight takes two for each token that passes it; attention is counted as in `sweeps.flops`, and
    the head once for every prediction.
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
    if case.way in ("ours", "floor"):
        return case.tokens * (layers**2 * of_block + 2 * layers * of_head)
    return case.tokens * passes(layers, case.way) * (layers * of_block + of_head)


def likely_seconds(bench: Bench, case: Case, peak: float) -> float:
    """Return how long a case is assumed to take, its model included if it is not open."""
    shape = bench.described(case.shape)
    # Ours and the floor are run once before they are timed.
    rounds = 7 if case.shape == READOUT else 2
    seconds = rounds * operations_of(shape, case, bench.context) / (LIKELY_RATE * peak)
    if case.way in ("loop", "lens", "authors"):
        together = 1 if case.way == "authors" else sequences_together(shape, bench.context)
        layers = shape.config(bench.context).num_hidden_layers
        calls = -(-case.tokens // (bench.context * together))
        seconds += PASS_SECONDS * calls * passes(layers, case.way)
    return seconds + (OPENING_SECONDS if case.shape != bench.shape else 0)


def sequences_together(shape: Shape, context: int) -> int:
    """Return how many sequences a plain way runs at once."""
    return max(1, LOGITS_AT_ONCE // (context * shape.config(context).vocab_size))


def measure(bench: Bench, case: Case) -> Row:
    """Measure a case."""
    model = bench.opened(case.shape)
    if bench.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        found = (_readout if case.shape == READOUT else _sweep)(bench, model, case)
    memory = float("nan")
    if bench.device.startswith("cuda"):
        memory = float(torch.cuda.max_memory_allocated())
    operations = operations_of(bench.described(case.shape), case, bench.context)
    return Row(case.shape, case.way, case.tokens, operations=operations, memory=memory, **found)


def _sweep(bench: Bench, model: Model, case: Case) -> dict[str, float]:
    """Time a sweep, or a plain way to the same numbers; return the mean KL besides."""
    text = make_corpus(case.tokens, model.vocabulary, bench.context)
    if case.way == "ours":
        work = prepare(model, text, SweepSettings(), RunOptions())
        foretold = estimate(work)
        if bench.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        # Libraries choose their kernels when a shape is first seen.
        sweep(model, make_corpus(min(case.tokens, work.tokens(work.batches[0])), model.vocabulary,
                                 bench.context))  # fmt: skip
        synchronize(bench.device)
        began = perf_counter()
        found = sweep(model, text)
        seconds = perf_counter() - began
        return {"seconds": seconds, "kl": float(found.kl.mean()),
                "memory_estimated": float(foretold.memory_bytes or 0)}  # fmt: skip
    if case.way == "floor":
        run = Products(model, prepare(model, text, SweepSettings(), RunOptions()))
        return {"seconds": timed(bench.device, run, warm=1)}
    tokens = torch.from_numpy(text.tokens).to(bench.device)
    forward, surgery = _plain(bench, model, case)
    runs = list(schedules(NAMES, model.layers).values())
    together = sequences_together(bench.described(case.shape), bench.context)

    def run(rows: Tensor) -> Tensor:
        if case.way == "authors":
            return authors(forward, surgery, rows, runs)
        return loop(forward, surgery, rows, runs, together)

    run(tokens[:1])
    result: list[Tensor] = []
    seconds = timed(bench.device, lambda: result.append(run(tokens)))
    return {"seconds": seconds, "kl": float(result[0][0].mean())}


def _plain(bench: Bench, model: Model, case: Case) -> tuple[Any, Any]:
    """Return a plain model's logits of tokens, and its surgery."""
    module = model.traced._module
    if case.way != "lens":
        path = bench.described(case.shape).blocks
        return (lambda rows: module(rows, use_cache=False).logits), partial(in_order, module, path)
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = module.config
    hooked = HookedTransformer(
        HookedTransformerConfig(
            n_layers=config.n_layer, d_model=config.n_embd, n_heads=config.n_head,
            d_head=config.n_embd // config.n_head, n_ctx=bench.context, act_fn="gelu_new",
            d_vocab=config.vocab_size, normalization_type="LN", dtype=bench.dtype,
            device=bench.device, seed=0,
        )
    )  # fmt: skip
    return hooked, partial(in_order, hooked, "blocks")


def _readout(bench: Bench, model: Model, case: Case) -> dict[str, float]:
    """Time the readout of random states."""
    width, vocabulary = bench.head
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, case.tokens, width, generator=generator)
    clean_states, states = states.to(bench.device, bench.dtype).unbind()
    targets = torch.randint(vocabulary, (case.tokens,), generator=generator).to(bench.device)
    matrix, head = model.unembedding(), model.head._module
    weight = head.weight.T

    def clean() -> Any:
        return readout.reference(clean_states, targets, head, vocabulary, matrix)

    kept = clean()

    def product() -> None:
        for part in weight.split(max(256, LOGITS_AT_ONCE // case.tokens), dim=1):
            torch.mm(states, part)

    run = {
        "clean": clean,
        "paired": lambda: readout.compare(states[None], kept),
        "product": product,
    }[case.way]
    return {"seconds": timed(bench.device, run, rounds=5, warm=2)}


def run(options: argparse.Namespace) -> int:
    """Measure all cases for which there is time, and print the tables."""
    began = perf_counter()
    device = options.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device: give --device cpu --tiny to try the benchmark")
    name = options.dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    bench = Bench(device, getattr(torch, name), options.tiny)
    about = facts(device) | {"dtype": name, "tiny": "yes" if options.tiny else "no"}
    rows = Rows(options.out, about, bench.context)
    size = 256 if options.tiny else 8192
    if not rows.has(PEAK, "product", size):
        seconds = product_seconds(device, bench.dtype, size)
        rows.add(Row(PEAK, "product", size, seconds=seconds, operations=2.0 * size**3))
    left_out = []
    for case in cases(options.only, options.tiny):
        if rows.has(case.shape, case.way, case.tokens):
            continue
        what = f"{case.shape} {case.way}, {case.tokens:,} tokens"
        likely = likely_seconds(bench, case, rows.peak())
        if options.budget and perf_counter() - began + likely > options.budget:
            left_out.append(what)
            continue
        try:
            row = measure(bench, case)
        except (torch.OutOfMemoryError, ImportError) as error:
            left_out.append(f"{what} ({str(error).splitlines()[0]})")
            continue
        rows.add(row)
        print(f"{what}: {row.seconds:.4g} s", flush=True)
    print_tables(rows)
    for what in left_out:
        print(f"left out: {what}")
    return 0


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], choices=[*SHAPES, READOUT])
    parser.add_argument("--budget", type=float, help="seconds after which nothing more is begun")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--tiny", action="store_true", help="models that any machine runs")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu.nc"))
    raise SystemExit(run(parser.parse_args()))


if __name__ == "__main__":
    main()
