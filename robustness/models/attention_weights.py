"""Attention weights of a model: which blocks have readable ones, and why others do not.

An eager implementation of attention returns its weights. Other implementations do not: there, the
weights are computed from the arguments of transformers' attention interface, if the attention
calls it.
"""

from collections.abc import Sequence

from nnsight.intervention.envoy import Envoy

from robustness.models.model import Model

INTERFACE = "attention_interface_1"
"""Name that nnsight gives to the call of transformers' attention interface in an attention."""


def by_layer(model: Model) -> dict[int, Envoy]:
    """Return the attention of every block that has one, by layer."""
    # The final dot keeps block 1 from taking the attention of block 10.
    layers = {f"{block.path}.": layer for layer, block in enumerate(model.blocks)}
    attentions = {}
    for part in model.attentions:
        for start, layer in layers.items():
            if part.path.startswith(start):
                attentions[layer] = part
    return attentions


def readable(model: Model) -> set[int]:
    """Return the layers whose attention weights may be read."""
    attentions = by_layer(model)
    if model.identity["attention"] == "eager":
        return set(attentions)
    # Other implementations return no weights: they are recomputed from the interface's arguments.
    return {layer for layer, part in attentions.items() if INTERFACE in part.source.names}


def explain_missing(model: Model, heads: Sequence[int], reasons: Sequence[str]) -> str:
    """Return which blocks have no attention weights, or weights of fewer heads, and why.

    Parameters
    ----------
    model : Model
        An opened model.
    heads : sequence of int
        Number of heads with weights, for each block.
    reasons : sequence of str
        Why an attention that was read has no weights, for each block; empty where it has some.
    """
    layers_of: dict[str, list[str]] = {}
    attentions = by_layer(model)
    for layer, (count, reason) in enumerate(zip(heads, reasons, strict=True)):
        if not count:
            layers_of.setdefault(_explain(attentions.get(layer), reason), []).append(str(layer))
    lines = []
    for reason, layers in layers_of.items():
        which = f"layer{'s' if len(layers) > 1 else ''} {', '.join(layers)}: "
        lines.append(reason if len(layers) == len(heads) else which + reason)
    counts = sorted({count for count in heads if count})
    if len(counts) > 1:
        lines.append(f"blocks have {' or '.join(map(str, counts))} heads")
    return "; ".join(lines)


def _explain(attention: Envoy | None, reason: str) -> str:
    """Return why a block has no attention weights."""
    if attention is None:
        return "no attention was found in it"
    reason = reason or (
        "its attention is not computed through transformers' attention interface; where it has "
        "weights, `attention` eager hands them over"
    )
    return f"{type(attention._module).__name__}: {reason}"
