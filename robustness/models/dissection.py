"""Whether a model's blocks are made of sublayers that can be executed alone, and which are."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import nnsight
import torch

from robustness.errors import Refusal
from robustness.models import anatomy
from robustness.models.model import Model
from robustness.ndif import answer
from robustness.schedules.schedule import Attention, Mlp, Schedule, leaves, to_text
from robustness.trace import block_calls, interpreter


def ready(model: Model, schedules: Sequence[Schedule]) -> Model:
    """Return a model that can execute schedules with sublayers in them, if there are any.

    Which parts of an attention's context grow with the batch is found on batches of two and three.

    Raises
    ------
    Refusal
        If sublayers are executed alone and blocks are not their sum.
    """
    alone = next(
        (
            leaf
            for schedule in schedules
            for step in schedule
            for leaf in leaves(step)
            if isinstance(leaf, (Attention, Mlp))
        ),
        None,
    )
    if alone is None or model.dissected is not None:
        return model
    facts = dict(vars(anatomy.examine(model)))
    missing, _ = facts.pop("missing"), facts.pop("partly")
    reason = next((missing[name] for name in anatomy.SUBLAYERS if name in missing), None)
    if reason is not None:
        raise Refusal(f"{to_text((alone,))} cannot be executed alone: {reason}")
    length = min(7, model.context or 7)
    ids = [[(5 * token + 1) % model.vocabulary for token in range(length)]]
    three, two = (torch.tensor(ids * size, device=model.device) for size in (3, 2))
    blocks, head, traced = model.blocks, model.head, model.traced
    attentions = dict(enumerate(model.attentions))
    request = model.asking(0)
    with torch.no_grad(), traced.session(**request):
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
    return replace(model, dissected={"facts": facts, "grows": found["grows"]})


def grows(model: Model) -> dict[str, Any]:
    """Return which parts of the contexts of `blocks` and `attentions` grow with the batch."""
    within = model.dissected["grows"] if model.dissected else {}
    return {"blocks": model.grows, "attentions": within}


def parts(model: Model, order: Iterable[Any]) -> tuple[dict[str, Any], dict[int, Any]]:
    """Return the parts of a model that plain steps call, and the attentions called alone by layer.

    The first is what `steps.execute` takes.
    """
    alone = {leaf for step in order for leaf in _alone(step)}
    called: dict[str, Any] = {"blocks": model.blocks}
    if alone and model.dissected:
        called = anatomy.parts(model) | model.dissected["facts"]
    return called, {layer: model.attentions[layer] for kind, layer in alone if kind == "attention"}


def _alone(step: Any) -> set[tuple[str, int]]:
    """Return the sublayers that a plain step calls."""
    if not isinstance(step, tuple):
        return set()
    kind, inner = step
    return set().union(*map(_alone, inner)) if kind == "parallel" else {(kind, inner)}
