"""Times sweeps and readouts on a GPU, with random weights in the shapes of well-known models.

For every shape, drop and swap together on random tokens, 256 in a sequence:

ours     robustness.sweeps.sweep; what a run does once, however long, is timed apart
compiled the same with compiled blocks
floor    the matrix products of ours alone, in the type of the weights
loop     a good loop over plain transformers: one clean pass kept, full log-softmax
authors  the paper's way: a clean and a changed pass for every intervention and document
lens     the same loop over TransformerLens before 4, if it is installed, with weights of its own

and for a head of width 4,096 and 131,072 tokens the readout alone: `clean`, loss and entropy;
`paired`, KL and the rest besides; `fused`, loss and entropy by the kernel of `fused_readout`; in
milliseconds, beside the public bar (Liger's README).

Every case is saved as soon as it is measured, and is not measured again: a killed run loses the
case at hand. The most telling cases come first, and those that would not end within the budget are
left out and named.

    python benchmarks/gpu.py --budget 240
    python benchmarks/gpu.py --only gpt2-small readout --out outputs/gpu.nc
    python benchmarks/gpu.py --device cpu --tiny --out outputs/gpu-tiny.nc
"""

import argparse
import gc
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest import mock

import torch
from card import facts, most_memory, product_seconds, reset_memory, synchronize, timed
from floors import Products
from gpu_cases import LOGITS_AT_ONCE, Case, cases, operations_of, passes, sequences_together
from gpu_rows import PEAK, READOUT, Row, Rows, print_tables
from shapes import SHAPES, TINY, Shape, head_alone
from torch import Tensor
from ways import CONTEXT, authors, in_order, loop, make_corpus

from robustness.errors import Refusal, first_line
from robustness.models import hashes
from robustness.models.compiled_blocks import compile_blocks
from robustness.models.model import Model
from robustness.models.opening import open_model
from robustness.runs.settings import RunOptions
from robustness.schedules.interventions import schedules
from robustness.sweeps import execution, precision_floor, sweep
from robustness.sweeps.cost import estimate
from robustness.sweeps.preparation import prepare
from robustness.sweeps.settings import SweepSettings
from robustness.text.corpus import Corpus
from robustness.trace import readout

NAMES = ("drop", "swap")

LIKELY_RATE = 0.3
"""Share of the peak that a case is assumed to run at, when it is decided whether it still fits."""

COMPILING_SECONDS = 40.0
"""Seconds that compiling blocks is assumed to take."""

PASS_SECONDS = 0.01
"""Seconds that a pass through a model is assumed to take however small it is."""

OPENING_SECONDS = 6.0
"""Seconds that building and checking a model is assumed to take."""


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
    if case.way == "compiled":
        seconds += COMPILING_SECONDS
    return seconds + (OPENING_SECONDS if case.shape != bench.shape else 0)


def measure(bench: Bench, case: Case) -> Row:
    """Measure a case."""
    model = bench.opened(case.shape)
    reset_memory(bench.device)
    with torch.no_grad():
        found = (_readout if case.shape == READOUT else _sweep)(bench, model, case)
    operations = operations_of(bench.described(case.shape), case, bench.context)
    measured = {"memory": most_memory(bench.device), **found}
    return Row(case.shape, case.way, case.tokens, operations=operations, **measured)


def _sweep(bench: Bench, model: Model, case: Case) -> dict[str, float]:
    """Time a sweep, or a plain way to the same numbers; return the mean KL besides."""
    text = make_corpus(case.tokens, model.vocabulary, bench.context)
    if case.way in ("ours", "compiled"):
        return _ours(bench, compile_blocks(model, print) if case.way == "compiled" else model, text)
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


def _ours(bench: Bench, model: Model, text: Corpus) -> dict[str, float]:
    """Time a sweep, and besides what it does once: measuring the floor of half precision."""
    work = prepare(model, text, SweepSettings(), RunOptions())
    foretold = estimate(work)
    batch = min(text.tokens.size, work.tokens(work.batches[0]))
    with mock.patch.object(execution, "measure_floor", lambda *given: {}):
        # Libraries choose their kernels when a shape is first seen.
        sweep(model, make_corpus(batch, model.vocabulary, bench.context))
        reset_memory(bench.device)
        synchronize(bench.device)
        began = perf_counter()
        found = sweep(model, text)
        seconds = perf_counter() - began
    memory = most_memory(bench.device)
    reset_memory(bench.device)
    once = timed(bench.device, lambda: precision_floor.measure_floor(model, text, print))
    return {
        "seconds": seconds,
        "once": once,
        "kl": float(found.kl.mean()),
        "memory": memory,
        "memory_once": most_memory(bench.device),
        "memory_estimated": float(foretold.memory_bytes or 0),
    }


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

    def fused() -> Any:
        if not bench.device.startswith("cuda"):
            raise ImportError("Triton's kernels need a GPU")
        from fused_readout import read

        return read(states, targets, head.weight.detach())

    run = {
        "clean": clean,
        "fused": fused,
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
        except (RuntimeError, ImportError, Refusal) as error:
            # A card may be free for minutes only: what fails is named, and the rest is measured.
            left_out.append(f"{what} ({first_line(error)})")
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
    try:
        raise SystemExit(run(parser.parse_args()))
    except Refusal as error:
        raise SystemExit(f"gpu.py: {error}") from None


if __name__ == "__main__":
    main()
