"""Requests that models of 8 to 405 billion parameters take on a server, by the plan alone.

Models are built without weights, from the sizes below, as they are for a server; the room is what
NDIF assigns unless it is told otherwise. Sizes, plans and costs come from the functions that a run
uses. No request may exceed its budget of memory or time.

    python benchmarks/remote_requests.py
    python benchmarks/remote_requests.py --models 70B --cards 4
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from probes.wic import mean_of_word
from robustness.measurements.clean_pass import Reading
from robustness.measurements.measurement import MEASUREMENTS
from robustness.measurements.observation import observe
from robustness.measurements.short_texts import ShortTexts, divide, foresee
from robustness.models import block_structure
from robustness.models.model import Model, find_parts
from robustness.models.structure import find_paths
from robustness.models.wrapping import wrap
from robustness.ndif.room import least
from robustness.runs.budget import budget_for
from robustness.runs.foresight import Foresight
from robustness.runs.request_cost import RequestCost, Text, of_plan
from robustness.runs.server_sizes import Reads, choose
from robustness.runs.settings import RunOptions
from robustness.schedules import clean
from robustness.sweeps.preparation import divide as divide_schedules
from robustness.sweeps.preparation import lay_out_schedules, prepare
from robustness.sweeps.requests import foresee as foresee_sweep
from robustness.sweeps.settings import SweepSettings
from robustness.text.corpus import Corpus

SIZES = {
    "8B": (32, 4096, 14336, 32, 8),
    "70B": (80, 8192, 28672, 64, 8),
    "405B": (126, 16384, 53248, 128, 8),
}
"""Blocks, width, neurons, heads, and heads with keys and values of Llama 3.1."""

VOCABULARY, CONTEXT, TOKENS = 128256, 256, 102400
"""Tokens of the vocabulary, in a window, and in the text."""

PAIRED_TOKENS = 8192
"""Tokens of the text for pairs of layers."""

WIC_SENTENCES, WIC_LENGTH = 2 * 7466, 16
"""Sentences of the published data set, and tokens of each, about."""

ITEMS, ITEM_LENGTH, ITEM_SCORED = 500, 96, 2
"""Items of a task, their tokens, and how many of these are scored, as in LAMBADA."""


@dataclass(frozen=True)
class Row:
    """Requests of a run."""

    what: str
    costs: Sequence[RequestCost]

    def text(self, of: str) -> str:
        """Return the line of a table."""
        most = RequestCost.largest(self.costs)
        up, down = (
            sum(getattr(cost, way) for cost in self.costs) for way in ("up_bytes", "down_bytes")
        )
        cells = [
            of, self.what, f"{len(self.costs):,}", f"{most.operations:.1e}", f"{most.seconds:.1f}",
            f"{sum(cost.seconds for cost in self.costs) / 3600:.2f}", f"{up / 1e6:,.1f}",
            f"{down / 1e6:,.1f}", f"{most.state_bytes / 1e9:.2f}", f"{most.call_bytes / 1e9:.2f}",
        ]  # fmt: skip
        return f"| {' | '.join(cells)} |"


def build(name: str, cards: int | None = None) -> Model:
    """Return a model without weights, as it is opened for a server."""
    layers, width, neurons, heads, keys = SIZES[name]
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=neurons,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        vocab_size=VOCABULARY,
        max_position_embeddings=131072,
    )
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    traced = wrap(module, None)
    paths = find_paths(module)
    room = least([], sum(weight.numel() for weight in module.parameters()))
    if cards is not None:
        room = replace(room, free_bytes=room.free_bytes * room.cards // cards, cards=cards)
    identity = {
        "model": name,
        "revision": "",
        "architecture": "LlamaForCausalLM",
        "dtype": "bfloat16",
        "device": "cuda",
        "attention": "sdpa",
        "server": "api.ndif.us",
    }
    model = Model(
        traced=traced,
        paths=paths,
        tokenizer=None,
        identity=identity,
        request={"backend": SimpleNamespace(room=room, reports=[], limits=None)},
        **find_parts(traced, paths),
    )
    # What a request would find.
    structure = block_structure.BlockStructure(
        False, False, ((1.0, 1.0),) * layers, 1e-5, (heads,) * layers, {}, {}
    )
    model.facts.known[block_structure._examine_with_patterns] = structure
    return model


def text(tokens: int) -> Corpus:
    """Return a text of random tokens."""
    count = tokens // CONTEXT
    drawn = np.random.default_rng(0).integers(0, VOCABULARY, (count, CONTEXT))
    return Corpus(drawn, np.full(count, CONTEXT), np.arange(count), "random", "windows", "none", 0)


class _Foreseen(Exception):
    """Ends a run before its first request."""


def rows(model: Model) -> Iterator[Row]:
    """Yield the requests of every kind of run."""
    for what, names, tokens in (
        ("sweep: drop, swap", None, TOKENS),
        ("sweep: drop-pair, 8,192 tokens", ("drop-pair",), PAIRED_TOKENS),
    ):
        prepared = prepare(model, text(tokens), SweepSettings(names), RunOptions())
        yield Row(what, foresee_sweep(prepared, prepared.batches).costs)
    for measurement in MEASUREMENTS:
        seen: list[Foresight] = []

        def stop(foresight: Foresight, seen: list[Foresight] = seen) -> None:
            seen.append(foresight)
            raise _Foreseen

        try:
            observe(model, text(TOKENS), [measurement], RunOptions(foresee=stop))
        except _Foreseen:
            yield Row(f"observe {measurement}", seen[0].costs)
    texts, reading = (
        ShortTexts([range(WIC_LENGTH)] * WIC_SENTENCES),
        Reading(mean_of_word, final=True, half=True),
    )
    numbers = (model.layers + 1) * model.width
    left = divide(model, texts, reading, RunOptions(), numbers=numbers)
    yield Row("probe wic", foresee(model, texts, reading, left, numbers).costs)
    yield Row("tasks: drop, swap, 500 items", list(_tasks(model)))


def _tasks(model: Model) -> Iterator[RequestCost]:
    """Yield the requests of a task."""
    schedules, _, _ = lay_out_schedules(model, SweepSettings())
    division = divide_schedules(model, [clean(model.layers), *schedules])
    sizes = choose(model, division, ITEM_LENGTH, Reads(ITEM_SCORED))
    count = max(1, sizes.text // ITEM_LENGTH)
    cap = sizes.state_cap(count * ITEM_LENGTH)
    for group in division.groups(sizes.requests):
        plan = division.plan(cap, group)
        read = Text(count, ITEM_LENGTH, count * ITEM_SCORED)
        numbers = 2 * plan.schedules * read.queries
        yield from [of_plan(model, plan, read, numbers, diverges=False)] * -(-ITEMS // count)


def main() -> None:
    """Print a line for each kind of run of each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--cards", type=int, help="GPUs that the weights are spread over")
    asked = parser.parse_args()
    columns = "requests | operations | s | hours | MB up | MB down | GB states | GB call"
    print(f"| model | run | {columns} |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name in asked.models:
        model = build(name, asked.cards)
        budget = budget_for(model)
        assert budget is not None
        for row in rows(model):
            print(row.text(name), flush=True)
            outside = sum(not budget.allows(cost) for cost in row.costs)
            assert not outside, f"{outside} requests exceed {budget}"
        room = model.request["backend"].room
        free, asked_for = room.free_bytes / 1e9, budget.memory_bytes / 1e9
        print(
            f"({name}: {room.cards} cards with {free:.1f} GB each besides the weights, of which "
            f"a request is planned with {asked_for:.1f} GB, and with {budget.seconds:.0f} s)"
        )


if __name__ == "__main__":
    main()
