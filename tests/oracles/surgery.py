"""Steps of a schedule as modules of plain transformers: hooks that zero, and sums by hand."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Module

from robustness.schedules import Attention, Mlp, Parallel, Scaled, Step, StreamScale

ATTENTIONS = ("attn", "attention", "self_attn", "self_attention")
MLPS = ("mlp", "fc2", "ffn")
POST_NORMS = {
    "post_self_attn_layernorm": ("post_self_attn_layernorm", "post_mlp_layernorm"),
    "post_feedforward_layernorm": ("post_attention_layernorm", "post_feedforward_layernorm"),
}
"""By a name that tells that there are some, the norms that follow attention and MLP."""

Place = tuple[int, Callable[[Module], Module]]
"""The block that stands at a position of the module list, and what is made of a copy of it."""


def unfold(step: Step) -> list[Place]:
    """Return the positions of a module list that execute a step.

    Steps on one input take a position each, so that each gets the mask of its own block: all hand
    on what they were given, and the last the weighted sum of what all have made of it.
    """
    if isinstance(step, Scaled):
        ((at, make),) = unfold(step.step)
        return [(at, lambda block: Changed(make(block), 1 - step.factor, step.factor))]
    if isinstance(step, StreamScale):
        return [(0, lambda block: Changed(block, step.factor, 0.0))]
    if isinstance(step, (Attention, Mlp)):
        return [(step.block, lambda block: silenced(block, type(step)))]
    if not isinstance(step, Parallel):
        return [(step, lambda block: block)]
    members = weighted(step, 1.0)
    made: list[torch.Tensor] = []
    return [
        (at, lambda block, w=w, make=make, rest=rest: Member(make(block), w, made, not rest))
        for (at, make, w), rest in zip(members, range(len(members) - 1, -1, -1), strict=True)
    ]


def weighted(step: Step, weight: float) -> list[tuple[int, Callable[[Module], Module], float]]:
    """Return every block or sublayer on one input with its weight in the mean of means."""
    if isinstance(step, Parallel):
        share = weight / len(step.steps)
        return [leaf for member in step.steps for leaf in weighted(member, share)]
    ((at, make),) = unfold(step)
    return [(at, make, weight)]


def silenced(block: Module, kept: type) -> Module:
    """Zero what the other sublayer of a block adds, after its norm where one follows it."""
    children = dict(block.named_children())
    after = [norms for name, norms in POST_NORMS.items() if name in children]
    names = (*after, (ATTENTIONS, MLPS))[0][kept is Attention]
    names = (names,) if isinstance(names, str) else names
    (part,) = [children[name] for name in names if name in children]
    adds = type(part).__name__ in {"BloomAttention", "BloomMLP", "MptMLP"}
    part.register_forward_hook(lambda _m, args, out: nothing(out, args[1] if adds else None))
    return block


def nothing(out: Any, stream: torch.Tensor | None) -> Any:
    """Return what a sublayer that adds nothing gives: zero, or the stream that it adds to."""
    first, *rest = out if isinstance(out, tuple) else (out,)
    first = torch.zeros_like(first) if stream is None else stream
    return (first, *rest) if isinstance(out, tuple) else first


class Changed(Module):
    """A block whose output is a sum of what enters and what leaves it, each with a factor."""

    def __init__(self, block: Module, entering: float, leaving: float) -> None:
        super().__init__()
        self.block, self.factors = block, (entering, leaving)
        self.attention_type = getattr(block, "attention_type", None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        out = self.block(*args, **kwargs)
        first, *rest = out if isinstance(out, tuple) else (out,)
        first = self.factors[0] * hidden + self.factors[1] * first
        return (first, *rest) if isinstance(out, tuple) else first


class Member(Module):
    """One of several blocks on one input."""

    def __init__(self, block: Module, weight: float, made: list[torch.Tensor], last: bool) -> None:
        super().__init__()
        self.block, self.weight, self.last = block, weight, last
        self.__dict__["made"] = made
        self.attention_type = getattr(block, "attention_type", None)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden = args[0] if args else kwargs["hidden_states"]
        out = self.block(*args, **kwargs)
        self.made.append(self.weight * (out[0] if isinstance(out, tuple) else out))
        if not self.last:
            return hidden
        total = sum(self.made)
        self.made.clear()
        return total


def rebuild(model: Module, path: str, schedule: tuple[Step, ...]) -> Module:
    """Return a plain model whose module list at a path is the schedule.

    Some families cut the list to `num_hidden_layers`, and Qwen2 picks masks by the position in
    `layer_types`; both are made to follow the blocks.
    """
    edited = copy.deepcopy(model)
    parent, _, name = path.rpartition(".")
    blocks = model.get_submodule(path)
    places = [place for step in schedule for place in unfold(step)]
    chosen = torch.nn.ModuleList(make(copy.deepcopy(blocks[at])) for at, make in places)
    setattr(edited.get_submodule(parent), name, chosen)
    edited.config.num_hidden_layers = len(places)
    if vars(edited.config).get("layer_types"):
        edited.config.layer_types = [model.config.layer_types[at] for at, _ in places]
    return edited
