"""The check on opening: run block by block, a model must give its own logits.

Whether the right parts of a model were found is measured. The check also finds out which parts of a
block's context grow with the batch, how the logits are scaled, and the type and device of the
weights; these are added to the model.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypedDict

import nnsight
import torch

from robustness.errors import Refusal, first_line, is_out_of_memory
from robustness.models import exact_products
from robustness.models.model import Model
from robustness.ndif import answer
from robustness.trace import block_calls, numerics, unembedding

TOLERANCE = 32
"""Maximum error where sums are taken in another order, in units of the type's last digit."""

EXACT_TOLERANCE = 4
"""Maximum error where the same sum is computed again, in units of the type's last digit."""


class Squash(TypedDict):
    """Scale and soft cap that make logits of the head's output, as `unembedding.fit` finds them."""

    scale: float
    cap: float | None
    off: float
    """Relative error of the logits made with them."""


class Trial(TypedDict):
    """Results of running a model on a short text, as a trace returns them."""

    squash: Squash
    returns: int
    """Number of values that a block returns in a tuple; 0 for the residual stream alone."""
    grows: dict[Any, bool]
    """Whether the first dimension of each tensor in the contexts of blocks grows with the batch."""
    device: str
    attention: str
    apart: bool
    """Whether the head has no weights where the trace runs."""
    shape: list[int]
    """Dimensions of the states that enter the blocks, without the features."""
    shared: list[float]
    """Error of each block's output after the other blocks have run on other states."""
    dtype: str
    largest: float
    """Largest absolute logit."""
    finite: bool
    ahead: float
    """Change of earlier logits when the last token changes."""
    off: list[float]
    """Errors of the logits run block by block: on the states of the natural pass, and on a batch
    of these states stacked twice."""


_PLAIN_TYPES = {
    "squash": dict, "returns": int, "grows": dict, "device": str, "attention": str, "apart": bool,
    "shape": [int], "shared": [float], "dtype": str, "largest": float, "finite": bool,
    "ahead": float, "off": [float],
}  # fmt: skip
"""Types of the values of a trial, which an answer is checked against."""


def check_model(model: Model) -> Model:
    """Return a model with the results of a trial, and refuse one that cannot be rewired.

    Raises
    ------
    Refusal
        If it looks ahead, or its blocks, called one by one, give other logits than the model.
    """
    try:
        trial = _run_trial(model)
        _check_answer(trial)
        for check in CHECKS:
            check(model, trial)
    except Refusal:
        raise
    except Exception as error:  # whatever a model's own code raises
        # Too large a model for this machine can be rewired all the same.
        if is_out_of_memory(error):
            raise
        raise Refusal(f"{model.title} cannot be rewired: {first_line(error)}") from error
    learned = {
        "dtype": _dtype(trial),
        "device": trial["device"],
        "attention": trial["attention"],
    }
    if trial["device"] != "cpu" and not model.request:
        learned["products"] = exact_products.RECORD
    return replace(
        model,
        grows=trial["grows"],
        returns=trial["returns"],
        identity=model.identity | learned,
        # Offloaded weights look as if they were apart, too.
        sandboxed=bool(model.request) and trial["apart"],
        squash=(trial["squash"]["scale"], trial["squash"]["cap"]),
    )


def _run_trial(model: Model) -> Trial:
    """Run a model on a short text, as it is and block by block.

    Batches of three and of two sequences show which parts of a context grow with the batch. The
    second sequence differs from the first in its last token, which shows whether the model is
    causal.
    """
    first = model.trial_text
    second = [*first[:-1], (first[-1] + 1) % model.vocabulary]
    three = torch.tensor([first, second, first], device=model.device)
    two = three[:2]
    blocks, norms, head, traced = model.blocks, model.norms, model.head, model.traced
    candidates = model.numbers
    request = model.asking(0)
    # One session, and so one request on a server. Names inside are sent along: `model` must not be
    # among them, since a dataclass cannot be rebuilt under another version of Python.
    with model.computing(), traced.session(**request):
        measured = nnsight.save({})
        with traced.trace(three, use_cache=False):
            _, contexts = block_calls.enter(blocks)
            sizes = block_calls.sizes(contexts)
            numbers = unembedding.trial(head.input)
            head.skip(numbers)
            squash = unembedding.fit(numbers, traced.output.logits, candidates)
            measured["squash"] = squash
        with traced.trace(two, use_cache=False):
            states, contexts = block_calls.enter(blocks)
            left = blocks[-1].output
            measured["returns"] = len(left) if isinstance(left, (tuple, list)) else 0
            measured["grows"] = block_calls.growing(block_calls.sizes(contexts), sizes)
            measured["device"] = states[0].device.type
            measured["attention"] = str(traced.config._attn_implementation)
            measured["apart"] = any(weight.is_meta for weight in head.parameters())
            states.append(norms[0].input if norms else head.input)
            eps = max(torch.finfo(kind).eps for kind in (states[0].dtype, torch.float32))
            measured["shape"] = list(states[0].shape[:-1])
            shared = [0.0]
            if measured["shape"] == list(two.shape):
                shared = block_calls.forgetful(states, contexts, blocks)
            measured["shared"] = shared
            # Blocks that share state raise errors when they are called on another batch.
            alone = measured["shape"] == list(two.shape) and numerics.largest(shared) <= 32 * eps
            predict = unembedding.predictor(head, (squash["scale"], squash["cap"]))
            ours = []
            for copies in (1, 2) if alone else ():
                hidden = torch.cat([states[0]] * copies)
                # As in a sweep, where a block that writes into its context would fail.
                for block, context in zip(blocks, block_calls.share(contexts, 2)):
                    widened = block_calls.widen(context, 2, copies, measured["grows"])
                    hidden = block_calls.call(block, hidden, widened)
                for norm in norms:
                    hidden = norm(hidden)
                ours.append(predict(hidden).cpu())
            # With several devices, the logits may be on another one than the head.
            given = traced.output.logits
            own = numerics.precise(given).cpu()
            coarsest = max((states[0].dtype, given.dtype), key=lambda kind: torch.finfo(kind).eps)
            measured["dtype"] = str(coarsest)
            measured["largest"] = float(own.abs().max())
            measured["finite"] = bool(torch.isfinite(own).all())
            measured["ahead"] = float((own[0, :-1] - own[1, :-1]).abs().max())
            measured["off"] = [
                float((mine - torch.cat([own] * copies)).abs().max())
                for mine, copies in zip(ours, (1, 2))
            ]
    trial: Trial = measured
    return trial


def _check_answer(trial: Trial) -> None:
    """Refuse an answer of a server that is no trial."""
    answer.plain(trial, _PLAIN_TYPES)
    answer.plain(trial["squash"], {"scale": float, "cap": float | None, "off": float})
    if trial["dtype"] not in {str(kind) for kind in answer.STATES}:
        raise answer.unexpected(f"its numbers are {trial['dtype']:.40}")


def _check_finite(model: Model, trial: Trial) -> None:
    """Refuse logits that are not all finite numbers."""
    dtype = _dtype(trial)
    if not trial["finite"]:
        wider = "bfloat16 or float32" if dtype == "float16" else "float64, or open another"
        raise Refusal(
            f"{model.title} overflows: its logits of a short text are not all finite numbers in "
            f"{dtype}: use `dtype` {wider}"
        )


def _check_shape(model: Model, trial: Trial) -> None:
    """Refuse blocks whose input is not (sequence, token, width)."""
    if trial["shape"] != [2, len(model.trial_text)]:
        raise Refusal(
            f"{model.title} cannot be rewired: what enters its blocks is of shape {trial['shape']} "
            "and not (sequence, token, width)"
        )


def _check_memory(model: Model, trial: Trial) -> None:
    """Refuse blocks whose output depends on the states that other blocks were run on."""
    difference = numerics.largest(trial["shared"])
    block = int(torch.tensor(trial["shared"]).argmax())
    if not difference <= TOLERANCE * _rounding(trial):
        raise Refusal(
            f"{model.title} cannot be rewired: its blocks share what they keep: what block {block} "
            f"gives depends on what others were run on (off by {difference:.2g})"
        )


def _check_head(model: Model, trial: Trial) -> None:
    """Refuse logits that are not the output of the head, up to a scale and a soft cap."""
    if not trial["squash"]["off"] <= unembedding.ROUNDING * _epsilon(trial):
        raise Refusal(
            f"{model.title} cannot be rewired: its logits are what its head gives neither as it is "
            f"nor scaled nor softly capped (off by {trial['squash']['off']:.2g})"
        )


def _check_causality(model: Model, trial: Trial) -> None:
    """Refuse a model in which a later token changes earlier logits."""
    if not trial["ahead"] <= TOLERANCE * _rounding(trial) * _size(trial):
        raise Refusal(
            f"{model.title} is not a decoder: a later token changes earlier logits by "
            f"{trial['ahead']:.2g}"
        )


def _check_logits(model: Model, trial: Trial) -> None:
    """Refuse a model whose blocks, norm and head, called one by one, give other logits.

    On the states of the natural pass, only the last digits may differ. On states that are stacked,
    as in a sweep, sums may be taken in another order, and more may differ.
    """
    exact = EXACT_TOLERANCE * (_epsilon(trial) * _size(trial))
    stacked = TOLERANCE * (_rounding(trial) * _size(trial))
    for difference, tolerance in zip(trial["off"], (exact, stacked)):
        if not difference <= tolerance:
            raise Refusal(
                f"{model.title} cannot be rewired: something besides its blocks, its norm and its "
                "head makes its logits, which run block by block are off by "
                f"{difference:.2g}, more than {tolerance:.2g}"
            )


CHECKS: tuple[Callable[[Model, Trial], None], ...] = (
    _check_finite,
    _check_shape,
    _check_memory,
    _check_head,
    _check_causality,
    _check_logits,
)
"""Checks in the order in which they run: each relies on those before it."""


def _dtype(trial: Trial) -> str:
    return trial["dtype"].removeprefix("torch.")


def _epsilon(trial: Trial) -> float:
    """Return the distance from 1 to the next larger number in the type of the weights."""
    return torch.finfo(getattr(torch, _dtype(trial))).eps


def _rounding(trial: Trial) -> float:
    """Return the rounding error of sums: some parts compute in float32 whatever the weights are."""
    return max(_epsilon(trial), torch.finfo(torch.float32).eps)


def _size(trial: Trial) -> float:
    """Return the largest absolute logit, or 1 if that is larger; errors are relative to it."""
    return max(1.0, trial["largest"])
