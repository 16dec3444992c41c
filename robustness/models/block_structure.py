"""Structure of blocks and of the final norm: measured, not looked up by family.

A block adds the outputs of its attention and its MLP to the residual stream. Three things are found
by running the model on a short text: whether the two run one after the other or in parallel, which
factors their outputs are multiplied by, and whether the final norm subtracts the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isnan
from typing import Any

import nnsight
import torch

from robustness.models import attention_weights
from robustness.models.model import Model
from robustness.ndif.answer import plain, unexpected
from robustness.trace import attention, block_calls, lens, sublayers
from robustness.trace.types import Modules

MOST_HEADS = 10_000
"""Maximum number of attention heads of a block that is believed of a server."""

SUBLAYERS = ("attention", "mlp", "context")
"""Captures that need the sublayers of a block: their outputs, and the context of attention."""

TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.01}
"""Maximum relative error of a block's output when it is computed from its sublayers, by type of the
weights."""

TOLERANCE_ELSEWHERE = 1e-4
"""Maximum relative error for weights of other types."""


@dataclass(frozen=True)
class BlockStructure:
    """Facts about a model that measurements of sublayers and of the final norm need."""

    parallel: bool
    """Whether attention and MLP of a block read the same residual stream."""
    centres: bool
    """Whether the final norm subtracts the mean over features, as LayerNorm does."""
    factors: tuple[tuple[float, ...], ...]
    """Factors with which the outputs of attention and MLP are added to the residual stream, for
    each block; empty where sublayers cannot be told apart."""
    epsilon: float
    """Number that the final norm adds to the variance or the mean square."""
    heads: tuple[int, ...]
    """Number of heads with attention weights, for each block: 0 where a block has none, and
    everywhere if attention weights were not asked for."""
    missing: dict[str, str]
    """Reason why something cannot be captured, by its name: `attention`, `mlp`, `context`,
    `pattern`, `neurons`, `prediction`."""
    partly: dict[str, str]
    """Reason why something can be captured in some blocks only, by its name: `pattern`."""

    def known(self) -> Modules:
        """Return the facts that a trace needs besides the parts of the model."""
        known: Modules = {
            "centres": self.centres,
            "parallel": self.parallel,
            "heads": self.heads,
            "epsilon": self.epsilon,
        }
        if self.factors:
            known["factors"] = self.factors
        return known


def examine(model: Model, needs: Sequence[str] = ()) -> BlockStructure:
    """Find out how every block is put together, and what the final norm does.

    The model is run once, and the result is remembered. Attention weights are examined only if
    `pattern` is among the needs.
    """
    with model.lock:
        if "pattern" in needs:
            return model.once(_examine_with_patterns)
        if _examine_with_patterns not in model.facts.known:
            return model.once(_examine)
        structure = model.once(_examine_with_patterns)
    # The answer must not depend on what was asked before: files hold these texts and numbers.
    missing = {need: why for need, why in structure.missing.items() if need != "pattern"}
    return replace(structure, heads=(0,) * model.layers, missing=missing, partly={})


def named_parts(model: Model) -> Modules:
    """Return the parts of a model by name, as measurements take them in a trace."""
    return {
        "blocks": model.blocks,
        "attentions": attention_weights.by_layer(model),
        "sublayers": model.sublayers,
        "factors": [(1.0, 1.0)] * model.layers,
        "writers": model.writers,
        "norms": model.norms,
        "normed": model.normed,
        "head": model.head,
        "squash": model.squash,
        "epsilon": 0.0,
        "eager": model.identity["attention"] == "eager",
    }


def _examine_with_patterns(model: Model) -> BlockStructure:
    return _examine(model, attention_weights.readable(model), patterns=True)


def _examine(
    model: Model, readable: set[int] | frozenset[int] = frozenset(), *, patterns: bool = False
) -> BlockStructure:
    """Examine a model, and the attention weights of the readable layers."""
    missing = _explain_unfound(model)
    tolerance = TOLERANCE.get(getattr(torch, model.identity["dtype"]), TOLERANCE_ELSEWHERE)
    seen = _try_out(model, "mlp" not in missing, readable, tolerance)
    parallel, sublayer_error = _choose(seen, "parallel", tolerance)
    centres, norm_error = _choose(seen, "centres", tolerance, clearly=model.normed)
    if sublayer_error is not None:
        reason = "attention and MLP, added to what enters a block, miss its output"
        text = f"{model.title}: {reason} (off by {sublayer_error:.2g})"
        missing |= dict.fromkeys(SUBLAYERS, text)
    if norm_error is not None:
        reason = "what follows the last block is neither a layer nor a root-mean-square norm"
        missing["prediction"] = f"{model.title}: {reason} (off by {norm_error:.2g})"
    weights = [seen["patterns"].get(layer, (0, "")) for layer in range(model.layers)]
    heads, reasons = zip(*weights)
    why = attention_weights.explain_missing(model, heads, reasons) if patterns else ""
    if why and not any(heads):
        missing["pattern"] = f"{model.title}: {why}"
    return BlockStructure(
        parallel=parallel,
        centres=centres,
        factors=tuple(seen.get("factors", ())),
        epsilon=_as_meant(seen["epsilon"], model),
        heads=heads,
        missing=missing,
        partly={"pattern": why} if why and any(heads) else {},
    )


def _explain_unfound(model: Model) -> dict[str, str]:
    """Return why sublayers cannot be captured, if some block lacks them."""
    missing: dict[str, str] = {}
    for name, parts, needs in (
        ("a pair of attention and MLP that add to the residual stream", model.sublayers, SUBLAYERS),
        ("an MLP made of matrices", model.writers, ("neurons",)),
        ("an attention", model.attentions, SUBLAYERS),
    ):
        if len(parts) != model.layers:
            text = f"{model.title}: {name} was found in {len(parts)} of {model.layers} blocks"
            missing |= dict.fromkeys(needs, text)
    return missing


def _try_out(
    model: Model, whole: bool, readable: set[int] | frozenset[int], tolerance: float
) -> dict[Any, Any]:
    """Run a model on a short text, and return the error of each possible answer.

    The batch has two sequences, because some parts are right for a single sequence only.

    Parameters
    ----------
    model : Model
        An opened model.
    whole : bool
        Whether attention and MLP were found in every block.
    readable : set of int
        Layers whose attention weights are examined.
    tolerance : float
        Maximum relative error of attention weights.
    """
    # A trace takes along every name it uses, and a `Model` cannot be rebuilt on a server: its parts
    # are named here.
    text = model.trial_text
    tokens = torch.tensor([text, text[::-1]], device=model.device)
    blocks, head, norms = model.blocks, model.head, model.norms
    known = named_parts(model)
    attentions, eager = known["attentions"], known["eager"]
    numbers = model.numbers
    request = model.asking(0)
    # nnsight drops a context manager that stands after the trace: all others come before it.
    with model.computing(), model.traced.trace(tokens, use_cache=False, **request):
        entering, leaving, contexts, written, patterns = [], [], [], [], {}
        for layer, block in enumerate(blocks):
            hidden, _ = block_calls.split_inputs(block.inputs)
            if whole:
                _, context = block_calls.split_inputs(attentions[layer].inputs)
                contexts.append(context)
            if layer in readable:
                part = attentions[layer]
                patterns[layer] = attention.inspect(part, eager, tokens.shape, tolerance)
            if whole:
                gave = []
                for which in (sublayers.ATTENTION, sublayers.MLP):
                    stream = sublayers.handed(layer, which, hidden, known)
                    gave.append(sublayers.seen(layer, which, stream, hidden, known))
                written.append(gave)
            entering.append(hidden)
            leaving.append(block_calls.first(block.output))
        final = norms[0].input if norms else head.input
        block_calls.pass_over(head)
        # Made inside the trace: a dictionary from outside would come back unchanged from a server.
        errors = nnsight.save({})
        errors["patterns"] = patterns
        errors["epsilon"] = known["epsilon"] = lens.stabiliser(final, known)
        if whole:
            known["factors"] = sublayers.factors(entering, leaving, written, numbers)
            errors["factors"] = known["factors"]
        for answer in (False, True):
            known["parallel"] = known["centres"] = answer
            errors["centres", answer] = lens.departure(final, known)
            if whole:
                errors["parallel", answer] = sublayers.mismatch(entering, leaving, contexts, known)
    _check_answer(errors, whole)
    return errors


def _check_answer(errors: Any, whole: bool) -> None:
    """Refuse an answer of a server that is not what was asked for."""
    types: dict[Any, Any] = {"patterns": dict}
    for question in ("centres", "parallel") if whole else ("centres",):
        types |= {(question, False): float, (question, True): float}
    plain(errors, types | ({"factors": [tuple]} if whole else {}))
    for pair in errors["factors"] if whole else ():
        plain(_as_pair(pair), {0: float, 1: float})
    for pair in errors["patterns"].values():
        heads, reason = plain(_as_pair(pair), {0: int, 1: str}).values()
        if not 0 <= heads <= MOST_HEADS or not reason.isprintable():
            raise unexpected(f"an attention of {heads} heads")


def _as_pair(value: Any) -> dict[int, Any]:
    if not isinstance(value, tuple) or len(value) != 2:
        raise unexpected("it is not of pairs")
    return dict(enumerate(value))


def _choose(
    seen: dict[Any, Any], question: str, tolerance: float, *, clearly: bool = True
) -> tuple[bool, float | None]:
    """Return the answer with the smaller error, and that error if the answer is not believed.

    An answer is believed if its error is within the tolerance and, with `clearly`, the other
    answer is clearly worse.
    """
    errors = [seen.get((question, answer), 0.0) for answer in (False, True)]
    # A comparison with NaN is false, and would take the answer for the better one.
    no, yes = (inf if isnan(error) else error for error in errors)
    unclear = clearly and sublayers.CLEARLY * min(no, yes) > max(no, yes) > 0
    right = min(no, yes) <= tolerance and not unclear
    return yes < no, None if right else min(no, yes)


def _as_meant(epsilon: float, model: Model) -> float:
    """Return a measured epsilon as it was configured: in the configuration, or with one digit.

    The measured value is returned if neither is as close as the type of the weights can tell.
    """
    digit = 64 * torch.finfo(getattr(torch, model.identity["dtype"])).eps
    close = max(digit, 64 * torch.finfo(torch.float32).eps)
    for meant in (*model.numbers, float(f"{epsilon:.0e}")):
        if abs(meant - epsilon) <= close * epsilon:
            return meant
    return epsilon
