"""Sublayers that schedules execute alone: whether blocks allow it, and which modules are called."""

from collections.abc import Iterable, Sequence
from typing import Any

import nnsight
import torch

from robustness.errors import Refusal
from robustness.models import block_structure
from robustness.models.model import Model
from robustness.ndif import answer
from robustness.schedules import Attention, Mlp, Schedule, leaves, to_text
from robustness.trace import block_calls, interpreter
from robustness.trace.types import Growths, Modules


def check_schedules(model: Model, schedules: Sequence[Schedule]) -> None:
    """Refuse schedules that execute sublayers alone if blocks are not the sum of their sublayers.

    The facts that take running the model are found here, before the first batch.

    Raises
    ------
    Refusal
        With the first sublayer that cannot be executed alone, and why.
    """
    alone = _first_alone(schedules)
    if alone is None:
        return
    missing = block_structure.examine(model).missing
    for need in block_structure.SUBLAYERS:
        if need in missing:
            raise Refusal(f"{to_text((alone,))} cannot be executed alone: {missing[need]}")
    model.once(_find_growth)


def called_parts(model: Model, steps: Iterable[Any]) -> tuple[Modules, dict[int, Any]]:
    """Return the parts that plain steps call, and the attentions that are called alone, by layer.

    The parts are those that `interpreter.execute` takes. Whole blocks are compiled ones where the
    model has these; sublayers never are.
    """
    blocks = model.compiled or model.blocks
    alone: set[tuple[str, int]] = set()
    for step in steps:
        alone |= _called_alone(step)
    if not alone:
        return {"blocks": blocks}, {}
    called = block_structure.named_parts(model) | block_structure.examine(model).known()
    called["blocks"] = blocks
    attentions = {}
    for kind, layer in alone:
        if kind == "attention":
            attentions[layer] = model.attentions[layer]
    return called, attentions


def growth(model: Model, attentions: dict[int, Any]) -> Growths:
    """Return which tensors in the contexts of blocks and of attentions grow with the batch."""
    return {"blocks": model.grows, "attentions": model.once(_find_growth) if attentions else {}}


def _first_alone(schedules: Sequence[Schedule]) -> Attention | Mlp | None:
    """Return the first sublayer that a schedule executes alone, if there is one."""
    for schedule in schedules:
        for step in schedule:
            for leaf in leaves(step):
                if isinstance(leaf, (Attention, Mlp)):
                    return leaf
    return None


def _called_alone(step: Any) -> set[tuple[str, int]]:
    """Return the sublayers that a plain step calls."""
    if not isinstance(step, tuple):
        return set()
    kind, inner = step
    return set().union(*map(_called_alone, inner)) if kind == "parallel" else {(kind, inner)}


def _find_growth(model: Model) -> dict[Any, bool]:
    """Find which tensors in the contexts of attentions grow, on batches of two and three."""
    # Not known from the blocks: an attention is called with other tensors than its block.
    ids = [model.trial_text]
    three, two = (torch.tensor(ids * size, device=model.device) for size in (3, 2))
    blocks, head, traced = model.blocks, model.head, model.traced
    attentions = dict(enumerate(model.attentions))
    request = model.asking(0)
    with model.computing(), traced.session(**request):
        found = nnsight.save({})
        with traced.trace(three, use_cache=False):
            _, contexts = interpreter.enter(blocks, attentions)
            larger = block_calls.sizes(list(contexts["attentions"].values()))
            block_calls.pass_over(head)
        with traced.trace(two, use_cache=False):
            _, contexts = interpreter.enter(blocks, attentions)
            smaller = block_calls.sizes(list(contexts["attentions"].values()))
            found["grows"] = block_calls.growing(smaller, larger)
            block_calls.pass_over(head)
    answer.plain(found, {"grows": dict})
    grows: dict[Any, bool] = found["grows"]
    return grows
