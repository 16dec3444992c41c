"""Which families are alike to a sweep, and to measurements, by what opening a model finds out.

Of families that are alike, one is swept and measured; `test_families` holds every family against
what is said of it here, so that none is left out for another that it is unlike.
"""

import os
from typing import NamedTuple

from families import DEEP

from robustness.models.block_structure import examine
from robustness.models.model import Model

NAMED, NESTED, EACH, PLACED = "by name", "in a tuple", "by name, a row each", "second, a row each"
"""How tensors come to blocks besides the residual stream; a row each is one per sequence."""

ROTARY = frozenset({NAMED, NESTED})


class Swept(NamedTuple):
    """What a sweep goes by: how blocks are called and answer, and what makes logits."""

    context: frozenset[str] = ROTARY
    tuples: bool = False
    logits: str = "plain"
    tail: int = 1
    """How many modules are between the last block and the head."""
    kinds: int = 1
    """How many kinds of blocks take turns."""
    attends: bool = True
    experts: bool = False


class Measured(NamedTuple):
    """What measurements go by: how blocks, their sublayers and the final norm are put together."""

    sublayers: str = "-a -m"
    """Attention and MLP: a `-` for every module before it, a `+` for every norm after it; in
    capitals where it adds to the residual stream itself."""
    centres: bool = False
    parallel: bool = False
    factors: bool = False
    tuples: bool = False
    logits: str = "plain"
    tail: int = 1
    normed: bool = True
    patterns: str = "sdpa"
    """What attention weights are read from, if they can be."""


MASKED = ROTARY | {EACH}
POSITIONS = frozenset({NAMED})
ROWS = frozenset({EACH})

SWEPT: dict[Swept, tuple[str, ...]] = {
    Swept(): (
        "llama", "gpt_neox", "phi", "gemma", "glm", "glm4", "nemotron", "olmo", "olmo2",
        "persimmon", "smollm3", "stablelm", "stablelm-parallel",
    ),
    Swept(POSITIONS): ("gpt2",),
    Swept(MASKED, kinds=2): ("qwen2", "exaone4", "olmo3", "qwen3"),
    Swept(MASKED): ("mistral", "phi3", "starcoder2"),
    Swept(MASKED, experts=True): ("mixtral",),
    Swept(experts=True): ("olmoe", "qwen3_moe"),
    Swept(logits="scaled"): ("cohere", "granite"),
    Swept(MASKED, logits="scaled", kinds=2): ("cohere2",),
    Swept(MASKED, logits="capped", kinds=2): ("gemma2", "gemma3"),
    Swept(MASKED | {PLACED}, logits="capped", kinds=2): ("gemma4",),
    Swept(MASKED, tuples=True): ("falcon", "falcon-alibi", "falcon-new"),
    Swept(POSITIONS | ROWS, tuples=True): ("codegen", "gptj", "mpt"),
    Swept(ROWS, tuples=True): ("bloom",),
    Swept(ROWS, tuples=True, kinds=2): ("gpt_neo",),
    Swept(frozenset({PLACED}), tuples=True, tail=0): ("openai-gpt",),
    Swept(frozenset()): ("gpt_bigcode",),
    Swept(ROWS): ("opt", "opt-350m"),
    Swept(ROWS, tail=2): ("opt-projected",),
    Swept(ROWS, attends=False): ("mamba",),
}  # fmt: skip
"""The families that are alike to a sweep."""

MEASURED: dict[Measured, tuple[str, ...]] = {
    Measured(): (
        "llama", "qwen2", "gemma", "glm", "mistral", "mixtral", "olmoe", "phi3", "qwen3",
        "qwen3_moe", "smollm3",
    ),
    Measured(centres=True): (
        "gpt2", "gpt_bigcode", "nemotron", "olmo", "persimmon", "stablelm", "starcoder2",
    ),
    Measured(centres=True, parallel=True): ("gpt_neox", "phi", "stablelm-parallel"),
    Measured(centres=True, parallel=True, logits="scaled"): ("cohere", "cohere2"),
    Measured(centres=True, parallel=True, tuples=True, patterns="eager"): ("codegen", "gptj"),
    Measured(centres=True, parallel=True, tuples=True, patterns=""): ("falcon", "falcon-new"),
    Measured(centres=True, tuples=True, patterns=""): ("falcon-alibi",),
    Measured(centres=True, tuples=True, patterns="eager"): ("gpt_neo",),
    Measured("-A -M", centres=True, tuples=True, patterns="eager"): ("bloom",),
    Measured("-a -M", centres=True, tuples=True, patterns="eager"): ("mpt",),
    Measured("-a ---m", centres=True): ("opt",),
    Measured("-a ---m", centres=True, tail=2): ("opt-projected",),
    Measured("a+ m+"): ("exaone4", "olmo2", "olmo3"),
    Measured("-a+ -m+"): ("glm4",),
    Measured("-a+ -m+", logits="capped"): ("gemma3",),
    Measured("-a+ -m+", logits="capped", patterns="eager"): ("gemma2",),
    Measured(factors=True, logits="scaled"): ("granite",),
    Measured("", logits="capped"): ("gemma4",),
    Measured("", normed=False): ("opt-350m",),
    Measured("", patterns=""): ("mamba",),
    Measured("", tuples=True, tail=0, normed=False, patterns=""): ("openai-gpt",),
}  # fmt: skip
"""The families that are alike to measurements."""


def swept(model: Model) -> Swept:
    """Return what a sweep of an opened model goes by."""
    config, context = model.traced.config, set()
    for (way, *place), grows in model.grows.items():
        come = "second" if way == 0 else NESTED if len(place) > 1 else NAMED
        context.add(f"{come}, a row each" if grows else come)
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", [""])
    return Swept(
        frozenset(context),
        model.returns > 0,
        _logits(model),
        len(model.norms),
        len(set(kinds)),
        len(model.attentions) > 0,
        hasattr(config, "num_experts_per_tok"),
    )


def measured(model: Model) -> Measured:
    """Return what measurements of an opened model go by."""
    found = examine(model, ["pattern"])
    sublayers = model.sublayers[0] if model.sublayers else ()
    return Measured(
        " ".join(map(_sublayer, "am", sublayers)),
        found.centres,
        found.parallel,
        any(pair != (1.0, 1.0) for pair in found.factors),
        model.returns > 0,
        _logits(model),
        len(model.norms),
        model.normed,
        "" if "pattern" in found.missing else model.identity["attention"],
    )


def _logits(model: Model) -> str:
    scale, cap = model.squash
    return "capped" if cap is not None else "plain" if scale == 1 else "scaled"


def _sublayer(name: str, part: tuple) -> str:
    before, _, after, handed = part
    return "-" * len(before) + (name if handed is None else name.upper()) + "+" * len(after)


def one_of_each(classes: dict[tuple, tuple[str, ...]]) -> list[str]:
    """Return the families to try, the first of a class; all with STAGES_FUZZ=1 in the environment.

    Those of `DEEP` are left out: every test is run on them.
    """
    every = os.environ.get("STAGES_FUZZ") == "1"
    tried = [families if every else families[:1] for families in classes.values()]
    return sorted(set(sum(tried, ())) - set(DEEP))
