"""How the sublayers of a block are put together, and what its norms do: measured, not looked up."""

from dataclasses import dataclass
from typing import Any

import nnsight
import torch

from robustness import interpreter, lens, similarity
from robustness.model import Model

SUBLAYERS = ("attention", "mlp", "context")
"""What is captured of the parts of a block."""

DIGITS = 256
"""Units in the last place by which parts, put together, may miss the whole."""


@dataclass(frozen=True)
class Anatomy:
    """What measurements of sublayers and of the final norm need to know of a model."""

    parallel: bool
    """Whether attention and MLP of a block read the same residual stream."""
    centres: bool
    """Whether the final norm takes the mean over features out, as LayerNorm does."""
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
    with torch.no_grad(), model.traced.trace(tokens, use_cache=False, **model.request):
        entering, leaving, contexts = [], [], []
        for layer, block in enumerate(blocks):
            hidden, _ = interpreter.split_inputs(block.inputs)
            if whole:
                _, context = interpreter.split_inputs(attentions[layer].inputs)
                contexts.append(context)
            out = block.output
            entering.append(hidden)
            leaving.append(out[0] if isinstance(out, tuple) else out)
        final = norms[0].input if norms else head.input
        head.skip(head.input[..., :1])
        errors = nnsight.save({})
        for answer in (False, True):
            known["parallel"] = known["centres"] = answer
            errors["centres", answer] = lens.departure(final, known)
            if whole:
                errors["parallel", answer] = similarity.mismatch(entering, leaving, contexts, known)
    # Norms of several families compute in float32 whatever the type of the weights.
    digit = max(torch.finfo(kind).eps for kind in (model.traced._module.dtype, torch.float32))
    found = {}
    for question, needs, reason in (
        ("parallel", SUBLAYERS, "attention and MLP, added to what enters a block, miss its output"),
        (
            "centres",
            ("prediction",),
            "the final norm is neither a layer nor a root-mean-square norm",
        ),
    ):
        answers = [errors.get((question, answer), 0.0) for answer in (False, True)]
        found[question] = answers[1] < answers[0]
        if not min(answers) <= DIGITS * digit:
            text = f"{reason} (off by {min(answers):.2g})"
            missing |= {need: f"{_called(model)}: {text}" for need in needs}
    return Anatomy(**found, missing=missing)


def _unfound(model: Model) -> dict[str, str]:
    """Return why sublayers cannot be captured where they are not found in every block."""
    for name, found in (
        ("an attention", model.attentions),
        ("an MLP", model.mlps),
        ("a norm", [norms for norms in model.block_norms if norms]),
    ):
        if len(found) != model.layers:
            text = f"{_called(model)}: {name} was found in {len(found)} of {model.layers} blocks"
            return dict.fromkeys((*SUBLAYERS, "pattern", "neurons"), text)
    if len(model.writers) != model.layers:
        return {"neurons": f"{_called(model)}: MLPs are not made of matrices"}
    return {}


def _called(model: Model) -> str:
    return f"{model.name} ({model.identity['architecture']})"


def parts(model: Model) -> dict[str, Any]:
    """Return the parts of a model by name, as measurements are handed them in a trace."""
    return {
        "blocks": model.blocks,
        "attentions": model.attentions,
        "mlps": model.mlps,
        "writers": model.writers,
        "block_norms": model.block_norms,
        "norms": model.norms,
        "head": model.head,
        "epsilon": model.epsilon,
        "eager": model.identity["attention"] == "eager",
    }
