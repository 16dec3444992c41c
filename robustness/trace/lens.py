"""The logit lens: what every residual stream predicts when it is read as if it were the last.

Two ways, because they answer differently. *Recomputed*: the final norm is applied to each residual
stream, as the model would. *Frozen*: each is divided by the scale that the final norm found in the
last residual stream of the same token, and neither the norm's nor the head's bias is added. That
is what libraries of the time plotted under the name of the logit lens: it acts as a temperature,
which makes early predictions look uniform.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustness.trace import numerics, readings, readout, unembedding

SMALL, LARGE = 2.0**-20, 2.0**6
"""Sizes of states beside which what norms add counts for all, and for nothing; half precision has
them both."""

READINGS = ("kl", "kl_reverse", "agreement", "loss", "entropy", "accuracy")


def states(captured: dict[str, Any], text: dict[str, Any]) -> dict[str, Tensor]:
    """Keep the residual stream of the tokens whose predictions are read."""
    return {"state": captured["residual"][:, text["first"] : text["last"]]}


def read(
    taken: Sequence[dict[str, Tensor]], parts: dict[str, Any], text: dict[str, Any]
) -> dict[str, Tensor]:
    """Read the residual stream of every depth, (depth, sequence, query, width), in both ways.

    Returns
    -------
    dict of str to tensor of shape (lens, depth, sequence)
        `kl`, of the lens from the final prediction, KL(final ‖ lens), and `kl_reverse`, `loss`,
        `entropy`, in nats; `agreement` and `accuracy`, shares of tokens. Lens 0 is recomputed, 1 is
        frozen.
    """

    def normed(state: Tensor) -> Tensor:
        for norm in parts["norms"]:
            state = norm(state)
        return numerics.precise(state)

    final = taken[-1]["state"]
    ending = normed(final)
    read_by_head = ending.to(final.dtype)
    head = unembedding.predictor(with_bias_as_feature(parts["head"], read_by_head), parts["squash"])
    matrix, bias = parts["matrix"]
    if bias is not None:
        matrix = torch.cat([matrix, bias[:, None]], 1)
    # A matrix without a bias needs no feature for it.
    plain = matrix is not None and bias is None
    targets, vocabulary = text["targets"].flatten(), text["vocabulary"]
    clean = readout.reference(_feature(ending, 1, plain), targets, head, vocabulary, matrix)
    shift = normed(torch.zeros_like(final[:1, :1])) if parts["norms"] else 0
    lens: list[list[dict[str, Tensor]]] = [[], []]
    for kept in taken:
        recomputed = normed(kept["state"])
        frozen = recomputed
        if parts["norms"]:
            ratio = spread(kept["state"], parts) / spread(final, parts)
            frozen = (recomputed - shift) * ratio
        both = torch.stack([_feature(recomputed, 1, plain), _feature(frozen, 0, plain)])
        values = readout.compare(both, clean, ("kl", "kl_reverse"))
        for index, collected in enumerate(lens):
            collected.append({name: value[index] for name, value in values.items()})
    reduced = [readings.reduce(collected, text) for collected in lens]
    return {name: torch.stack([one[name] for one in reduced]) for name in READINGS}


def spread(state: Tensor, parts: dict[str, Any]) -> Tensor:
    """Return by what a norm divides a state, (…, 1) of (…, width).

    The standard deviation, or the root of the mean square for a norm that does not centre; one
    where there is no norm.
    """
    state = numerics.precise(state)
    if not parts["normed"]:
        return torch.ones_like(state[..., :1])
    if parts["centres"]:
        state = state - state.mean(-1, keepdim=True)
    return (state.square().mean(-1, keepdim=True) + parts["epsilon"]).sqrt()


def stabiliser(like: Tensor, parts: dict[str, Any]) -> float:
    """Return what the norm after the last block adds to the mean square, as its outputs tell.

    A state whose mean square is s comes out smaller than a large one by the root of s / (s + eps).

    Parameters
    ----------
    like : tensor of shape (sequence, token, width)
        Of what type states are.
    """
    if not parts["normed"]:
        return 0.0

    def norm(state: Tensor) -> Tensor:
        for part in parts["norms"]:
            state = part(state)
        return numerics.precise(state)

    # Without a mean, so that it is the same for a norm that centres.
    signs = torch.ones_like(like)
    signs[..., ::2] = -1
    signs = signs - signs.mean(-1, keepdim=True)
    shift = norm(torch.zeros_like(like))
    small, large = (float((norm(signs * size) - shift).norm()) for size in (SMALL, LARGE))
    square = SMALL**2 * float(numerics.precise(signs).square().mean())
    return square * ((large / small) ** 2 - 1) if small > 0 else 0.0


def departure(like: Tensor, parts: dict[str, Any]) -> float:
    """Return by how much what follows the last block departs from a linear map over `spread`.

    On states of ordinary size, made up, of the width and type of `like` (sequence, token, width);
    relative to what it gives. Without a norm, 0.
    """
    if not parts["norms"]:
        return 0.0

    def norm(state: Tensor) -> Tensor:
        for part in parts["norms"]:
            state = part(state)
        return numerics.precise(state)

    shift = norm(torch.zeros_like(like))
    waves = torch.arange(like[0].numel(), device=like.device).view_as(like[0])
    one, other = torch.sin(1.7 * waves) + 1, torch.cos(0.9 * waves**1.1)
    mapped = []
    for state in (one, other, one + other):
        rounded = state.to(like.dtype).expand_as(like)
        mapped.append((norm(rounded) - shift) * spread(rounded, parts))
    return float((mapped[0] + mapped[1] - mapped[2]).abs().max() / mapped[2].abs().max())


def with_bias_as_feature(
    head: Callable[[Tensor], Tensor], like: Tensor
) -> Callable[[Tensor], Tensor]:
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
