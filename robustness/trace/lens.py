"""The logit lens: what every residual stream predicts when it is read as if it were the last.

Two ways, because they answer differently. *Recomputed*: the final norm is applied to each residual
stream, as the model would. *Frozen*: each is divided by the scale that the final norm found in the
last residual stream of the same token, and neither the norm's nor the head's bias is added. That
is what libraries of the time plotted under the name of the logit lens: it acts as a temperature,
which makes early predictions look uniform.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustness.trace import numerics, readings, readout, unembedding

if TYPE_CHECKING:
    from robustness.trace.types import Captured, Head, Modules, TokenFacts

SMALL, LARGE = 2.0**-20, 2.0**6
"""Sizes of states beside which what norms add counts for all, and for nothing; half precision has
them both."""

READINGS = ("kl", "kl_reverse", "agreement", "loss", "entropy", "accuracy")


def states(captured: Captured, facts: TokenFacts) -> dict[str, Tensor]:
    """Keep the residual stream of the tokens whose predictions are read."""
    return {"state": captured["residual"][:, facts["first"] : facts["last"]]}


def read(
    taken: Sequence[dict[str, Tensor]], modules: Modules, facts: TokenFacts
) -> dict[str, Tensor]:
    """Read the residual stream of every depth, (depth, sequence, query, width), in both ways.

    Returns
    -------
    dict of str to tensor of shape (lens, depth, sequence)
        `kl`, of the lens from the final prediction, KL(final ‖ lens), and `kl_reverse`, `loss`,
        `entropy`, in nats; `agreement` and `accuracy`, shares of tokens. Lens 0 is recomputed, 1 is
        frozen.
    """
    final = taken[-1]["state"]
    ending = _normed(final, modules)
    read_by_head = ending.to(final.dtype)
    unbiased = with_bias_as_feature(modules["head"], read_by_head)
    head = unembedding.predictor(unbiased, modules["squash"])
    matrix, bias = modules["matrix"]
    # A matrix without a bias needs no feature for it.
    plain = matrix is not None and bias is None
    if matrix is not None and bias is not None:
        matrix = torch.cat([matrix, bias[:, None]], 1)
    targets, vocabulary = facts["targets"].flatten(), facts["vocabulary"]
    clean = readout.reference(_feature(ending, 1, plain), targets, head, vocabulary, matrix)
    shift = _normed(torch.zeros_like(final[:1, :1]), modules) if modules["norms"] else 0
    lenses: list[list[dict[str, Tensor]]] = [[], []]
    for kept in taken:
        recomputed = _normed(kept["state"], modules)
        frozen = recomputed
        if modules["norms"]:
            ratio = spread(kept["state"], modules) / spread(final, modules)
            frozen = (recomputed - shift) * ratio
        both = torch.stack([_feature(recomputed, 1, plain), _feature(frozen, 0, plain)])
        values = readout.compare(both, clean, ("kl", "kl_reverse"))
        for index, read_out in enumerate(lenses):
            read_out.append({name: value[index] for name, value in values.items()})
    masks = facts["compared"], facts["predicted"]
    reduced = [readings.reduce(read_out, masks) for read_out in lenses]
    return {name: torch.stack([one[name] for one in reduced]) for name in READINGS}


def _normed(state: Tensor, modules: Modules) -> Tensor:
    """Return what follows the last block makes of a state, in float32 or wider."""
    return numerics.precise(readings.through_norms(state, modules))


def spread(state: Tensor, modules: Modules) -> Tensor:
    """Return by what a norm divides a state, (…, 1) of (…, width).

    The standard deviation, or the root of the mean square for a norm that does not centre; one
    where there is no norm.
    """
    state = numerics.precise(state)
    if not modules["normed"]:
        return torch.ones_like(state[..., :1])
    if modules["centres"]:
        state = state - state.mean(-1, keepdim=True)
    return (state.square().mean(-1, keepdim=True) + modules["epsilon"]).sqrt()


def stabiliser(like: Tensor, modules: Modules) -> float:
    """Return what the norm after the last block adds to the mean square, as its outputs tell.

    A state whose mean square is s comes out smaller than a large one by the root of s / (s + eps).

    Parameters
    ----------
    like : tensor of shape (sequence, token, width)
        Of what type states are.
    """
    if not modules["normed"]:
        return 0.0

    # Without a mean, so that it is the same for a norm that centres.
    signs = torch.ones_like(like)
    signs[..., ::2] = -1
    signs = signs - signs.mean(-1, keepdim=True)
    shift = _normed(torch.zeros_like(like), modules)
    small, large = (
        float((_normed(signs * size, modules) - shift).norm()) for size in (SMALL, LARGE)
    )
    square = SMALL**2 * float(numerics.precise(signs).square().mean())
    return square * ((large / small) ** 2 - 1) if small > 0 else 0.0


def departure(like: Tensor, modules: Modules) -> float:
    """Return by how much what follows the last block departs from a linear map over `spread`.

    On states of ordinary size, made up, of the width and type of `like` (sequence, token, width);
    relative to what it gives. Without a norm, 0.
    """
    if not modules["norms"]:
        return 0.0

    shift = _normed(torch.zeros_like(like), modules)
    waves = torch.arange(like[0].numel(), device=like.device).view_as(like[0])
    one, other = torch.sin(1.7 * waves) + 1, torch.cos(0.9 * waves**1.1)
    mapped = []
    for state in (one, other, one + other):
        rounded = state.to(like.dtype).expand_as(like)
        mapped.append((_normed(rounded, modules) - shift) * spread(rounded, modules))
    return float((mapped[0] + mapped[1] - mapped[2]).abs().max() / mapped[2].abs().max())


def with_bias_as_feature(head: Head, like: Tensor) -> Head:
    """Return the head as a function of states with one more feature, by which its bias counts.

    States without it are as wide and of the type as `like` (sequence, query, width).
    """
    width = like.shape[-1]

    def call(states: Tensor) -> Tensor:
        bias = numerics.precise(head(torch.zeros_like(like[:1, 0]))).to(states.device)
        unbiased = numerics.precise(head(states[:, :width].to(like.dtype))).to(states.device)
        return unbiased + (states[:, width:] - 1) * bias

    return call


def _feature(states: Tensor, value: int, plain: bool) -> Tensor:
    """Flatten states (sequence, query, width) to tokens, and append a feature unless `plain`."""
    states = states.flatten(0, 1)
    return states if plain else torch.cat([states, torch.full_like(states[:, :1], value)], 1)
