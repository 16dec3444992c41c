"""What half precision does to KL, agreement and loss: the floor of small trained models.

    python benchmarks/precision.py [MODEL …] [--data FILE] [--tokens N] [--out FILE.nc]
    python benchmarks/precision.py --tables FILE.nc

Without MODEL, the built-in models are measured. Tables are printed as Markdown, of what is measured
or of what an earlier call kept. Three models are
made of each checkpoint: `checkpoint`, its weights and arithmetic in float32; `rounded`, weights
rounded to half precision, arithmetic in float32; and `half`, both in half precision. All run on the
CPU, whose half-precision products are summed in float32 as a GPU's are.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from precision_tables import DTYPES, print_tables
from torch import Tensor

from robustness.models.model import Model
from robustness.models.opening import open_model
from robustness.text.corpus import Corpus, cut
from robustness.trace import block_calls, numerics, readout, rounding

SHARES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
"""Shares of a block's output that are taken away; 1 is a drop."""

SEQUENCES_AT_ONCE = 16

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Runs:
    """One model on one text, run block by block without a trace."""

    model: Model
    tokens: Tensor
    contexts: Sequence[Any]
    states: Sequence[Tensor]
    """The residual stream at every depth of the clean run."""

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return self.model.layers

    def through(self, hidden: Tensor, schedule: Sequence[int]) -> Tensor:
        """Run blocks on a state."""
        for layer in schedule:
            block = self.model.blocks[layer]._module
            hidden = block_calls.call(block, hidden, self.contexts[layer])
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (token, vocabulary) of the predictions of a final state, in float32."""
        for norm in self.model.norms:
            hidden = norm._module(hidden)
        matrix = self.model.unembedding(copied=False)
        return readout.logits_of(hidden[:, 1:-1].flatten(0, 1), {"matrix": matrix})


def begin(model: Model, tokens: Tensor) -> Runs:
    """Run the clean pass, and keep what enters every block and its context."""
    entering: list[Tensor] = []
    contexts: list[Any] = []

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        hidden, context = block_calls.split_inputs((args, kwargs))
        entering.append(hidden)
        contexts.append(context)

    hooks = []
    for block in model.blocks:
        hooks.append(block._module.register_forward_pre_hook(keep, with_kwargs=True))
    model.traced._module(input_ids=tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    last = block_calls.call(model.blocks[-1]._module, entering[-1], contexts[-1])
    return Runs(model, tokens, contexts, [*entering, last])


def compare(clean: Tensor, other: Tensor, tokens: Tensor) -> Values:
    """Return mean KL(clean ‖ other), agreement, and difference of losses, (3,)."""
    targets = tokens[:, 2:].flatten()
    kl = numerics.kl_from_logits(clean, other)
    agreeing = (clean.argmax(-1) == other.argmax(-1)).float()
    losses = [torch.nn.functional.cross_entropy(each, targets) for each in (clean, other)]
    values = [kl.double().mean(), agreeing.double().mean(), (losses[1] - losses[0]).double()]
    return torch.stack(values).numpy()


def schedules(layers: int) -> dict[str, list[int]]:
    """Return schedules with fewer and with more blocks than the model has."""
    chosen = {}
    for part in (0.25, 0.5, 0.75):
        chosen[f"first {part:g} L"] = list(range(round(part * layers)))
    chosen["all"] = list(range(layers))
    inner = list(range(1, layers - 1))
    chosen["inner blocks twice"] = [0, *(layer for layer in inner for _ in range(2)), layers - 1]
    return chosen


def measure_text(of: dict[str, Runs], half: torch.dtype) -> dict[str, Values]:
    """Measure everything on one batch of text; see `ROWS` for what has which dimensions."""
    tokens, layers = of["half"].tokens, of["half"].layers
    found: dict[str, Any] = {}
    clean = {name: runs.logits(runs.states[-1]) for name, runs in of.items()}
    found["clean"] = [
        compare(clean[one], clean[other], tokens)
        for one, other in (("checkpoint", "half"), ("rounded", "half"), ("checkpoint", "rounded"))
    ]
    found["depth"] = []
    for schedule in schedules(layers).values():
        ends = {}
        for name in ("rounded", "half"):
            ends[name] = of[name].logits(of[name].through(of[name].states[0], schedule))
        found["depth"].append(compare(ends["rounded"], ends["half"], tokens))
    found["layer"] = []
    exact = of["rounded"]
    for depth, state in enumerate(exact.states):
        rounded = exact.through(state.to(half).float(), range(depth, layers))
        found["layer"].append(compare(clean["rounded"], exact.logits(rounded), tokens))
    found["anew"] = [rounded_anew(of["half"], clean["half"], where) for where in (1, layers)]
    found["share"] = []
    for share in SHARES:
        for layer in range(layers):
            row = []
            for name in ("rounded", "half", "checkpoint"):
                runs = of[name]
                before, after = (runs.states[layer + each].float() for each in (0, 1))
                mixed = (after + share * (before - after)).to(runs.states[layer].dtype)
                ended = runs.through(mixed, range(layer + 1, layers))
                row.append(compare(clean[name], runs.logits(ended), tokens))
            found["share"].append(row)
    return {name: np.array(values) for name, values in found.items()}


def rounded_anew(runs: Runs, clean: Tensor, blocks: int) -> Values:
    """Compare a half-precision run with one whose states before the first blocks are disturbed."""
    hidden = runs.states[0]
    for layer in range(runs.layers):
        if layer < blocks:
            hidden = rounding.anew(hidden, layer)
        hidden = runs.through(hidden, [layer])
    return compare(clean, runs.logits(hidden), runs.tokens)


def models_of(source: str, dtype: str) -> dict[str, Model]:
    """Open the three models of a checkpoint."""
    opened = {}
    for name in ("checkpoint", "rounded"):
        opened[name] = open_model(source, dtype="float32", device="cpu")
    for tensor in opened["rounded"].traced._module.parameters():
        tensor.data = tensor.to(getattr(torch, dtype)).float()
    opened["half"] = open_model(source, dtype=dtype, device="cpu")
    return opened


def batches(corpus: Corpus) -> Iterator[Tensor]:
    """Yield the tokens of a few sequences at a time."""
    for part in torch.from_numpy(corpus.tokens).split(SEQUENCES_AT_ONCE):
        if len(part) == SEQUENCES_AT_ONCE or len(corpus.tokens) < SEQUENCES_AT_ONCE:
            yield part


def measure(source: str, dtype: str, data: str, context: int, tokens: int) -> xr.Dataset:
    """Measure one checkpoint in one type; means over the text."""
    opened = models_of(source, dtype)
    model = opened["half"]
    context = min(context, model.context or context)
    corpus = cut(data, model.tokenizer, context=context, tokens=tokens)
    parts = []
    with torch.no_grad():
        for rows in batches(corpus):
            of = {name: begin(each, rows) for name, each in opened.items()}
            parts.append(measure_text(of, getattr(torch, dtype)))
    mean = {name: np.mean([part[name] for part in parts], axis=0) for name in parts[0]}
    between = ["whole", "arithmetic", "weights"]
    readouts = ["kl", "agreement", "loss_rise"]
    shares = mean["share"].reshape(len(SHARES), model.layers, 3, 3)
    return xr.Dataset(
        {
            "clean": (("between", "readout"), mean["clean"]),
            "depth": (("schedule", "readout"), mean["depth"]),
            "layer": (("depth_rounded", "readout"), mean["layer"]),
            "anew": (("disturbed", "readout"), mean["anew"]),
            "intervened": (("share", "layer", "run", "readout"), shares),
        },
        {
            "between": between,
            "disturbed": ["first block", "all blocks"],
            "readout": readouts,
            "schedule": list(schedules(model.layers)),
            "run": ["rounded", "half", "checkpoint"],
            "share": list(SHARES),
        },
        {
            "model": model.name,
            "architecture": model.identity["architecture"],
            "dtype": dtype,
            "layers": model.layers,
            "tokens": len(parts) * rows.numel(),
            "context": context,
        },
    )


def kept(path: Path) -> list[xr.Dataset]:
    """Return what an earlier call kept."""
    with netCDF4.Dataset(path) as file:
        groups = list(file.groups)
    return [xr.load_dataset(path, group=group) for group in groups]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["builtin", "builtin-parallel"])
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--out", type=Path, help="keep the numbers, one group for each row")
    parser.add_argument("--tables", type=Path, help="print the tables of what was kept")
    options = parser.parse_args()
    found = [] if options.tables is None else kept(options.tables)
    for source in [] if options.tables else options.models:
        for dtype in options.dtype:
            found.append(measure(source, dtype, options.data, options.context, options.tokens))
    if options.out is not None:
        for index, each in enumerate(found):
            each.to_netcdf(options.out, mode="a" if index else "w", group=f"row{index}")
    print_tables(found)


if __name__ == "__main__":
    main()
