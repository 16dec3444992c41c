"""How the sublayers of a block are put together, and what its norms do: measured, not looked up."""

from dataclasses import dataclass
from math import isnan
from typing import Any

import nnsight
import torch

from robustness import interpreter, lens, sublayers
from robustness.model import Model

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
    missing: dict[str, str]
    """Of what cannot be captured, why: `attention`, `mlp`, `context`, `pattern`, `neurons`,
    `prediction`."""


def examine(model: Model) -> Anatomy:
    """Find out how blocks are put together and what the final norm does, on every block."""
    length = min(7, model.context or 7)
    ids = [[(5 * token + 1) % model.vocabulary for token in range(length)]]
    tokens = torch.tensor(ids, device=model.device)
    blocks, attentions, head, norms = model.blocks, model.attentions, model.head, model.norms
    known = parts(model)
    missing = _unfound(model)
    whole = "mlp" not in missing
    eager = known["eager"] and "pattern" not in missing
    numbers = model.numbers
    with torch.no_grad(), model.traced.trace(tokens, use_cache=False, **model.request):
        entering, leaving, contexts, written, weights = [], [], [], [], False
        for layer, block in enumerate(blocks):
            hidden, _ = interpreter.split_inputs(block.inputs)
            if whole:
                _, context = interpreter.split_inputs(attentions[layer].inputs)
                contexts.append(context)
            if eager and not layer:
                out = attentions[0].output
                weights = isinstance(out, tuple) and out[1] is not None
            if whole:
                gave = []
                for which in (sublayers.ATTENTION, sublayers.MLP):
                    stream = sublayers.handed(layer, which, hidden, known)
                    gave.append(sublayers.seen(layer, which, stream, hidden, known))
                written.append(gave)
            entering.append(hidden)
            leaving.append(interpreter.first(block.output))
        final = norms[0].input if norms else head.input
        interpreter.pass_over(head)
        errors = nnsight.save({})
        errors["weights"] = not eager or weights
        if whole:
            known["factors"] = sublayers.factors(entering, leaving, written, numbers)
            errors["factors"] = known["factors"]
        for answer in (False, True):
            known["parallel"] = known["centres"] = answer
            errors["centres", answer] = lens.departure(final, known)
            if whole:
                errors["parallel", answer] = sublayers.mismatch(entering, leaving, contexts, known)
    tolerance = TOLERANCE.get(getattr(torch, model.identity["dtype"]), TOLERANCE_ELSEWHERE)
    found: dict[str, Any] = {"factors": tuple(errors.get("factors", ()))}
    for question, needs, reason in (
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
            missing |= {need: f"{_called(model)}: {text}" for need in needs}
    if not errors["weights"]:
        missing["pattern"] = f"{_called(model)}: its eager attention does not hand over its weights"
    return Anatomy(**found, missing=missing)


def _unfound(model: Model) -> dict[str, str]:
    """Return why sublayers cannot be captured where they are not found in every block."""
    missing: dict[str, str] = {}
    for name, found, needs in (
        ("a pair of attention and MLP that add to the residual stream", model.sublayers, SUBLAYERS),
        ("an MLP made of matrices", model.writers, ("neurons",)),
        ("an attention", model.attentions, (*SUBLAYERS, "pattern")),
    ):
        if len(found) != model.layers:
            text = f"{_called(model)}: {name} was found in {len(found)} of {model.layers} blocks"
            missing |= dict.fromkeys(needs, text)
    if "pattern" not in missing and model.identity["attention"] != "eager":
        if "attention_interface_1" not in model.attentions[0].source.names:
            missing["pattern"] = (
                f"{_called(model)}: its attention is not computed through transformers' attention "
                "interface; --attention eager may hand over the weights"
            )
    return missing


def _called(model: Model) -> str:
    return f"{model.name} ({model.identity['architecture']})"


def parts(model: Model) -> dict[str, Any]:
    """Return the parts of a model by name, as measurements are handed them in a trace."""
    return {
        "blocks": model.blocks,
        "attentions": model.attentions,
        "sublayers": model.sublayers,
        "factors": [(1.0, 1.0)] * model.layers,
        "writers": model.writers,
        "norms": model.norms,
        "normed": model.normed,
        "head": model.head,
        "squash": model.squash,
        "epsilon": model.epsilon,
        "eager": model.identity["attention"] == "eager",
    }
