"""Logit lens: the predictions of every residual stream when it is read as if it were the last.

There are two lenses, because their results differ. *Recomputed*: the final norm is applied to each
residual stream, as the model does to the last. *Frozen*: each residual stream is divided by the
scale that the final norm has in the last residual stream of the same token, and neither the norm's
nor the head's bias is added. Libraries at the time of the paper plotted the frozen lens. Its scale
acts as a temperature, which makes early predictions look uniform.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustness.trace import numerics, readings, readout, unembedding

if TYPE_CHECKING:
    from robustness.trace.types import Captured, Head, Matrix, Modules, TokenFacts

SMALL, LARGE = 2.0**-20, 2.0**6
"""Sizes of states beside which the norm's epsilon dominates, and vanishes; both exist in half
precision."""

ALIGNED = 8
"""Number of columns that are added to a matrix of half precision."""

READINGS = ("kl", "kl_reverse", "agreement", "loss", "entropy", "accuracy")
"""Names of the readouts of a lens."""


def states(captured: Captured, facts: TokenFacts) -> dict[str, Tensor]:
    """Keep the residual stream of the tokens whose predictions are read."""
    return {"state": captured["residual"][:, facts["first"] : facts["last"]]}


def read(
    taken: Sequence[dict[str, Tensor]], modules: Modules, facts: TokenFacts
) -> dict[str, Tensor]:
    """Read the residual stream of every depth, (depth, sequence, query, width), with both lenses.

    Returns
    -------
    dict of str to tensor of shape (lens, depth, sequence)
        `kl`, KL(final ‖ lens), `kl_reverse`, `loss` and `entropy`, in nats; `agreement` and
        `accuracy`, shares of tokens. Lens 0 is recomputed, lens 1 frozen.
    """
    final = taken[-1]["state"]
    ending = _normed(final, modules)
    read_by_head = ending.to(final.dtype)
    unbiased = with_bias_as_feature(modules["head"], read_by_head)
    head = unembedding.predictor(unbiased, modules["squash"])
    matrix = modules["matrix"]
    # Both lenses are read together, but only the recomputed one has the head's bias. So the bias is
    # one more column of the matrix, whose feature is 1 for the recomputed lens, and 0 for the
    # frozen one.
    features = 1
    if matrix is not None:
        width, matrix = matrix["weight"].shape[1], _with_bias_as_column(matrix)
        features = matrix["weight"].shape[1] - width
    targets, vocabulary = facts["targets"].flatten(), facts["vocabulary"]
    clean = readout.reference(_feature(ending, 1, features), targets, head, vocabulary, matrix)
    shift = _normed(torch.zeros_like(final[:1, :1]), modules) if modules["norms"] else 0
    lenses: list[list[dict[str, Tensor]]] = [[], []]
    for of_depth in taken:
        recomputed = _normed(of_depth["state"], modules)
        frozen = recomputed
        if modules["norms"]:
            # The norm is linear but for its scale: the bias off, then the other scale.
            ratio = spread(of_depth["state"], modules) / spread(final, modules)
            frozen = (recomputed - shift) * ratio
        both = torch.stack([_feature(recomputed, 1, features), _feature(frozen, 0, features)])
        values = readout.compare(both, clean, ("kl", "kl_reverse"))
        for index, read_out in enumerate(lenses):
            read_out.append({name: value[index] for name, value in values.items()})
    masks = readings.masks_of(facts)
    reduced = [readings.reduce(read_out, masks) for read_out in lenses]
    of_lenses = {}
    for name in READINGS:
        of_lenses[name] = torch.stack([of_lens[name] for of_lens in reduced])
    return of_lenses


def _normed(state: Tensor, modules: Modules) -> Tensor:
    """Return a state after the modules between last block and head, in float32 or wider."""
    # Of a model over several devices, the norm may be on another than the last block.
    return numerics.precise(readings.through_norms(state, modules)).to(state.device)


def spread(state: Tensor, modules: Modules) -> Tensor:
    """Return the scale by which the final norm divides a state, (…, 1) of (…, width).

    It is the standard deviation, the root of the mean square for a norm that does not centre, and
    one for a model without a norm.
    """
    state = numerics.precise(state)
    if not modules["normed"]:
        return torch.ones_like(state[..., :1])
    if modules["centres"]:
        state = state - state.mean(-1, keepdim=True)
    return (state.square().mean(-1, keepdim=True) + modules["epsilon"]).sqrt()


def stabiliser(like: Tensor, modules: Modules) -> float:
    """Return the epsilon that the final norm adds to the mean square, from its outputs.

    A state whose mean square is s leaves the norm smaller than a large state, by the factor
    sqrt(s / (s + eps)).

    Parameters
    ----------
    like : tensor of shape (sequence, token, width)
        Tensor of the shape and type of states.
    """
    if not modules["normed"]:
        return 0.0

    # The mean is zero, so that a norm that centres yields the same.
    signs = torch.ones_like(like)
    signs[..., ::2].neg_()
    signs = signs - signs.mean(-1, keepdim=True)
    shift = _normed(torch.zeros_like(like), modules)
    small = float((_normed(signs * SMALL, modules) - shift).norm())
    large = float((_normed(signs * LARGE, modules) - shift).norm())
    square = SMALL**2 * float(numerics.precise(signs).square().mean())
    return square * ((large / small) ** 2 - 1) if small > 0 else 0.0


def departure(like: Tensor, modules: Modules) -> float:
    """Return the relative error of the final norm as a linear map divided by `spread`.

    It is measured on artificial states of ordinary size, of the width and type of `like` (sequence,
    token, width). Without a norm it is 0.
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
    """Return the head as a function of states with one more feature, the factor of its bias.

    States without this feature have the width and type of `like` (sequence, query, width).
    """
    width = like.shape[-1]

    def call(states: Tensor) -> Tensor:
        # The bias is the head's output for a state of zeros, wherever the head keeps it.
        bias = numerics.precise(head(torch.zeros_like(like[:1, 0]))).to(states.device)
        unbiased = numerics.precise(head(states[:, :width].to(like.dtype))).to(states.device)
        return unbiased + (states[:, width:] - 1) * bias

    return call


def _with_bias_as_column(matrix: Matrix) -> Matrix:
    """Return a matrix with its bias, if there is one, as one more column."""
    weight, bias = matrix["weight"], matrix["bias"]
    if bias is None:
        return matrix
    # Products of half precision are fast where rows begin at a multiple of 16 bytes.
    columns = ALIGNED if weight.itemsize == 2 else 1
    more = weight.new_zeros(len(weight), columns)
    more[:, 0] = bias
    return {**matrix, "weight": torch.cat([weight, more], 1), "bias": None}


def _feature(states: Tensor, value: int, features: int) -> Tensor:
    """Flatten states (sequence, query, width) to tokens, and append features of one value."""
    states = states.flatten(0, 1)
    return torch.cat([states, states.new_full((len(states), features), value)], 1)
