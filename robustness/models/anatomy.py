"""How the sublayers of a block are put together, and what its norms do: measured, not looked up."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import nnsight
import torch

from robustness.models.model import Model
from robustness.ndif.answer import other, plain
from robustness.trace import attention, block_calls, lens, sublayers

INTERFACE = "attention_interface_1"
"""What nnsight calls the one call of transformers' attention interface in an attention."""

MOST_HEADS = 10_000
"""Attention heads of a block, whatever a server says."""

SUBLAYERS = ("attention", "mlp", "context")
"""What is captured of the parts of a block."""

TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.01}
"""By how much parts, put together, may miss the whole, relative to it, by type of the weights."""

TOLERANCE_ELSEWHERE = 1e-4


@dataclass(frozen=True)
class Anatomy:
    """What measurements of sublayers and of the final norm need to know of a model."""

    parallel: bool
    """Whether attention and MLP of a block read the same residual stream."""
    centres: bool
    """Whether the final norm takes the mean over features out, as LayerNorm does."""
    factors: tuple[tuple[float, ...], ...]
    """Of every block, by what the outputs of attention and MLP are multiplied when they are added
    to the residual stream; empty where sublayers cannot be told apart."""
    epsilon: float
    """What the final norm adds to the variance or the mean square."""
    heads: tuple[int, ...]
    """Of every block, of how many heads its attention has weights: 0 where it has none, and
    everywhere unless they were asked for."""
    missing: dict[str, str]
    """Of what cannot be captured, why: `attention`, `mlp`, `context`, `pattern`, `neurons`,
    `prediction`."""
    partly: dict[str, str]
    """The same of what cannot be captured of every block, or not alike: `pattern`."""


def examine(model: Model, needs: Sequence[str] = ()) -> Anatomy:
    """Find out how blocks are put together and what the final norm does, on every block.

    Attention weights are looked at only if `pattern` is among what is needed. The text is of two
    sequences, because some parts are right for one alone.
    """
    length = min(7, model.context or 7)
    first = [(5 * token + 1) % model.vocabulary for token in range(length)]
    tokens = torch.tensor([first, first[::-1]], device=model.device)
    blocks, head, norms = model.blocks, model.head, model.norms
    known = parts(model)
    attentions, eager = known["attentions"], known["eager"]
    missing = _unfound(model)
    whole = "mlp" not in missing
    patterned = set(_with_weights(model)) if "pattern" in needs else set()
    numbers = model.numbers
    tolerance = TOLERANCE.get(getattr(torch, model.identity["dtype"]), TOLERANCE_ELSEWHERE)
    request = model.asking(0)
    with torch.no_grad(), model.traced.trace(tokens, use_cache=False, **request):
        entering, leaving, contexts, written, patterns = [], [], [], [], {}
        for layer, block in enumerate(blocks):
            hidden, _ = block_calls.split_inputs(block.inputs)
            if whole:
                _, context = block_calls.split_inputs(attentions[layer].inputs)
                contexts.append(context)
            if layer in patterned:
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
    found: dict[str, Any] = {"factors": tuple(errors.get("factors", ()))}
    found["epsilon"] = _rounded(errors["epsilon"], model)
    for question, asking, reason in (
        ("parallel", SUBLAYERS, "attention and MLP, added to what enters a block, miss its output"),
        (
            "centres",
            ("prediction",),
            "what follows the last block is neither a layer nor a root-mean-square norm",
        ),
    ):
        answers = [errors.get((question, answer), 0.0) for answer in (False, True)]
        answers = [torch.inf if isnan(error) else error for error in answers]
        found[question] = answers[1] < answers[0]
        unclear = sublayers.CLEARLY * min(answers) > max(answers) > 0
        if question == "centres" and not model.normed:
            unclear = False
        if not min(answers) <= tolerance or unclear:
            text = f"{reason} (off by {min(answers):.2g})"
            missing |= {need: f"{_called(model)}: {text}" for need in asking}
    weights = [errors["patterns"].get(layer, (0, "")) for layer in range(model.layers)]
    heads, reasons = zip(*weights)
    why = _why_not(model, heads, reasons) if "pattern" in needs else ""
    partly = {"pattern": why} if why and any(heads) else {}
    if why and not partly:
        missing["pattern"] = f"{_called(model)}: {why}"
    return Anatomy(**found, heads=heads, missing=missing, partly=partly)


def _check_answer(errors: Any, whole: bool) -> None:
    """Refuse what comes back from a server and is not what was asked for."""
    questions = ("centres", "parallel") if whole else ("centres",)
    asked: dict[Any, Any] = {(name, way): float for name in questions for way in (False, True)}
    plain(errors, asked | {"patterns": dict} | ({"factors": [tuple]} if whole else {}))
    for pair in errors["factors"] if whole else ():
        plain(_pair(pair), {0: float, 1: float})
    for pair in errors["patterns"].values():
        heads, reason = plain(_pair(pair), {0: int, 1: str}).values()
        if not 0 <= heads <= MOST_HEADS or not reason.isprintable():
            raise other(f"an attention of {heads} heads")


def _pair(found: Any) -> dict[int, Any]:
    if not isinstance(found, tuple) or len(found) != 2:
        raise other("it is not of pairs")
    return dict(enumerate(found))


def _unfound(model: Model) -> dict[str, str]:
    """Return why sublayers cannot be captured where they are not found in every block."""
    missing: dict[str, str] = {}
    for name, found, needs in (
        ("a pair of attention and MLP that add to the residual stream", model.sublayers, SUBLAYERS),
        ("an MLP made of matrices", model.writers, ("neurons",)),
        ("an attention", model.attentions, SUBLAYERS),
    ):
        if len(found) != model.layers:
            text = f"{_called(model)}: {name} was found in {len(found)} of {model.layers} blocks"
            missing |= dict.fromkeys(needs, text)
    return missing


def _rounded(epsilon: float, model: Model) -> float:
    """Return what norms add as it was meant: a number of the configuration, or of one digit.

    If either is as close as the type of the weights can tell; else as it was measured.
    """
    digit = 64 * torch.finfo(getattr(torch, model.identity["dtype"])).eps
    close = max(digit, 64 * torch.finfo(torch.float32).eps)
    meant = [*model.numbers, float(f"{epsilon:.0e}")]
    return next((each for each in meant if abs(each - epsilon) <= close * epsilon), epsilon)


def attentions(model: Model) -> dict[int, Any]:
    """Return the attention of every block that has one, by layer."""
    layers = {f"{block.path}.": layer for layer, block in enumerate(model.blocks)}
    return {
        layers[start]: part
        for part in model.attentions
        for start in layers
        if part.path.startswith(start)
    }


def _with_weights(model: Model) -> list[int]:
    """Return of which blocks attention weights may be read."""
    found = attentions(model)
    if model.identity["attention"] == "eager":
        return list(found)
    return [layer for layer, part in found.items() if INTERFACE in part.source.names]


def _why_not(model: Model, heads: Sequence[int], reasons: Sequence[str]) -> str:
    """Return which blocks have no attention weights, or of fewer heads than others, and why."""
    parts, told = attentions(model), []
    for layer, (count, reason) in enumerate(zip(heads, reasons, strict=True)):
        if layer not in parts:
            reason = "no attention was found in it"
        elif not count and not reason:
            reason = (
                "its attention is not computed through transformers' attention interface; where it "
                "has weights, --attention eager hands them over"
            )
        if not count:
            kind = f"{type(parts[layer]._module).__name__}: " if layer in parts else ""
            told.append((f"{kind}{reason}", layer))
    lines = []
    for reason in dict.fromkeys(reason for reason, _ in told):
        layers = [str(layer) for each, layer in told if each == reason]
        of_layers = f"layer{'s' if len(layers) > 1 else ''} {', '.join(layers)}: "
        lines.append(reason if len(layers) == len(heads) else of_layers + reason)
    counts = sorted({count for count in heads if count})
    if len(counts) > 1:
        lines.append(f"blocks have {' or '.join(map(str, counts))} heads")
    return "; ".join(lines)


def _called(model: Model) -> str:
    return f"{model.name} ({model.identity['architecture']})"


def parts(model: Model) -> dict[str, Any]:
    """Return the parts of a model by name, as measurements are handed them in a trace."""
    return {
        "blocks": model.blocks,
        "attentions": attentions(model),
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
