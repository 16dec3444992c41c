"""What the clean run shows, recomputed on plain transformers models with hooks, in float64."""

import math
from typing import Any

import numpy as np
import torch
from families import BLOCKS, rebuilt
from torch import Tensor
from torch.nn import Module

ATTENTION = {
    **dict.fromkeys(
        ("gpt2", "gptj", "codegen", "gpt_bigcode", "gpt_neo", "mpt", "openai-gpt"), "attn"
    ),
    **dict.fromkeys(("bloom", "falcon", "falcon-alibi", "falcon-new"), "self_attention"),
    "gpt_neox": "attention",
}
MLP = {**dict.fromkeys(("opt", "opt-350m", "opt-projected"), "fc2"), "mpt": "ffn"}
ADDING = {
    **dict.fromkeys(
        ("gemma2", "gemma3", "olmo2", "olmo3", "exaone4"),
        ("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    "glm4": ("post_self_attn_layernorm", "post_mlp_layernorm"),
}
"""Norms between the sublayers and the residual stream."""

SUMMING = {"bloom": ("self_attention", "mlp"), "mpt": ("ffn",)}
"""Sublayers that are handed the residual stream, as their second argument, and add to it."""

FACTOR = {"granite": 0.22}
NORMS = {
    **{family: "transformer.ln_f" for family, path in BLOCKS.items() if path == "transformer.h"},
    "gpt_neox": "gpt_neox.final_layer_norm",
    "phi": "model.final_layernorm",
    "persimmon": "model.final_layernorm",
    "mpt": "transformer.norm_f",
    "mamba": "backbone.norm_f",
    "opt": "model.decoder.final_layer_norm",
    "opt-projected": "model.decoder.final_layer_norm",
}
NORMLESS = {"openai-gpt", "opt-350m"}
PROJECTIONS = {name: "model.decoder.project_out" for name in ("opt-350m", "opt-projected")}
PARALLEL = {
    "gpt_neox",
    "phi",
    "gptj",
    "codegen",
    "cohere",
    "cohere2",
    "falcon",
    "falcon-new",
    "stablelm-parallel",
}
EXCEEDING = {"gemma", "gemma2", "gemma3", "nemotron"}
"""Whose norms keep what the gain exceeds 1 by."""

SQUASHED: dict[str, Any] = {
    "cohere": lambda logits: logits * 0.1,
    "cohere2": lambda logits: logits * 0.25,
    "gemma2": lambda logits: 4 * torch.tanh(logits / 4),
    "gemma4": lambda logits: 5 * torch.tanh(logits / 5),
    "gemma3": lambda logits: 6 * torch.tanh(logits / 6),
    "granite": lambda logits: logits / 8,
}


def run(model: Module, tokens: Tensor) -> dict[str, Any]:
    """Run a model and keep what enters and leaves its blocks, and what its sublayers write."""
    family = model.family
    seen: dict[str, list[Tensor]] = {"in": [], "out": [], "attention": [], "mlp": [], "final": []}

    def keep(name):
        def hook(_module, _args, output):
            output = output[0] if isinstance(output, (tuple, list)) else output
            seen[name].append(output.detach().clone())

        return hook

    def keep_added(name, adds):
        def hook(_module, args, output):
            output = output[0] if isinstance(output, (tuple, list)) else output
            output = output - args[1] if adds else output * FACTOR.get(family, 1)
            seen[name].append(output.detach().clone().view_as(seen["in"][-1]))

        return hook

    def keep_input(name):
        def hook(_module, args, kwargs):
            seen[name].append((args[0] if args else kwargs["hidden_states"]).detach())

        return hook

    handles = []
    for block in model.get_submodule(BLOCKS[family]):
        parts = ATTENTION.get(family, "self_attn"), MLP.get(family, "mlp")
        handles += [
            block.register_forward_pre_hook(keep_input("in"), with_kwargs=True),
            block.register_forward_hook(keep("out")),
        ]
        for name, part in zip(("attention", "mlp"), ADDING.get(family, parts), strict=True):
            if hasattr(block, part):
                adds = part in SUMMING.get(family, ())
                hook = keep_added(name, adds)
                handles.append(block.get_submodule(part).register_forward_hook(hook))
    tail = _tail(family)
    first = model.get_submodule(tail[0]) if tail else model.get_output_embeddings()
    handles.append(first.register_forward_pre_hook(keep_input("final"), with_kwargs=True))
    with torch.no_grad():
        patterns = model.config._attn_implementation == "eager"
        out = model(tokens, use_cache=False, output_attentions=patterns)
    for handle in handles:
        handle.remove()
    return {**seen, "logits": out.logits, "patterns": getattr(out, "attentions", None)}


def _tail(family: str) -> list[str]:
    """Return where the final norm and a projection after it are."""
    norm = [] if family in NORMLESS else [NORMS.get(family, "model.norm")]
    return [*norm, *([PROJECTIONS[family]] if family in PROJECTIONS else [])]


def centred(model: Module) -> bool:
    """Whether the final norm takes the mean out: by its class, which is of either kind."""
    norm, *_ = [*_tail(model.family), ""]
    return "LayerNorm" in type(model.get_submodule(norm)).__name__


def lens(model: Module, tokens: Tensor) -> dict[str, np.ndarray]:
    """Readouts (lens, depth, sequence), over all but the first and the last query."""
    family, head = model.family, model.get_output_embeddings()
    seen = run(model, tokens)
    tail = [model.get_submodule(path) for path in _tail(family)]
    norm = tail[0] if tail else None
    squash = SQUASHED.get(family, lambda logits: logits)
    final = torch.log_softmax(seen["logits"], -1)[:, 1:-1]
    following = tokens[:, 2:, None]
    found: dict[str, list[list[Tensor]]] = {}

    def scale(state):
        eps = getattr(norm, "eps", getattr(norm, "variance_epsilon", None))
        if family == "olmo":
            eps = 1e-5
        if centred(model):
            state = state - state.mean(-1, keepdim=True)
        return torch.sqrt((state**2).mean(-1, keepdim=True) + eps)

    for frozen in (False, True):
        for values in found.values():
            values.append([])
        for state in [*seen["in"], seen["final"][0]]:
            with torch.no_grad():
                if frozen and family not in NORMLESS:
                    moved = state - state.mean(-1, keepdim=True) if centred(model) else state
                    gain = getattr(norm, "weight", torch.ones(()))
                    gain = gain + 1 if family in EXCEEDING else gain
                    normed = moved / scale(seen["final"][0]) * gain
                    for part in tail[1:]:
                        normed = part(normed)
                    logits = squash(normed @ head.weight.T)
                else:
                    for part in tail:
                        state = part(state)
                    logits = squash(head(state))
            q = torch.log_softmax(logits, -1)[:, 1:-1]
            values = {
                "kl": (final.exp() * (final - q)).sum(-1),
                "kl_reverse": (q.exp() * (q - final)).sum(-1),
                "agreement": (final.argmax(-1) == q.argmax(-1)).double(),
                "loss": -q.gather(-1, following)[..., 0],
                "entropy": -(q.exp() * q).sum(-1),
                "accuracy": (q.argmax(-1) == following[..., 0]).double(),
            }
            for name, value in values.items():
                found.setdefault(name, [[]])[-1].append(value.mean(1))
    return {
        name: np.array([[v.numpy() for v in each] for each in lists])
        for name, lists in found.items()
    }


def attention(model: Module, tokens: Tensor, offsets: int) -> dict[str, np.ndarray]:
    """Reduce what a model with eager attention hands over."""
    return reduced(torch.stack(run(model, tokens)["patterns"]).numpy(), offsets)


def reduced(patterns: np.ndarray, offsets: int) -> dict[str, np.ndarray]:
    """Loops over queries: profile (layer, head, offset, sequence) and what else is reduced."""
    layers, sequences, heads, length, _ = patterns.shape
    profile = np.zeros((layers, heads, offsets + 1, sequences))
    first, entropy = np.zeros((2, layers, heads, sequences))
    queries = range(offsets + 1, length)
    for layer, sequence, head in np.ndindex(layers, sequences, heads):
        for query in queries:
            row = patterns[layer, sequence, head, query] / len(queries)
            for offset in range(offsets + 1):
                profile[layer, head, offset, sequence] += row[query - offset]
            first[layer, head, sequence] += row[0]
            entropy[layer, head, sequence] -= sum(
                p * math.log(p * len(queries)) for p in row if p > 0
            )
    return {"profile": profile, "first_token": first, "entropy": entropy}


def norms(model: Module, tokens: Tensor) -> dict[str, np.ndarray]:
    """Norms (layer, processing, statistic, sequence), block influence, angles."""
    family = model.family
    seen = run(model, tokens)
    states = [*seen["in"], seen["final"][0]]

    def statistics(values):  # (sequence, token)
        inner = values[:, 1:-1]
        return np.stack([inner.mean(1), np.median(inner, axis=1), values[:, 0]])

    def over(make):
        kinds = [lambda x: x]
        if centred(model):
            kinds.append(lambda x: x - x.mean(-1, keepdims=True))
        return np.stack([statistics(make(kind)) for kind in kinds])

    def size(tensor):
        return lambda kind: np.linalg.norm(kind(tensor.numpy()), axis=-1)

    found: dict[str, list[np.ndarray]] = {
        "residual_norm": [over(size(state)) for state in states],
        "attention_norm": [over(size(value)) for value in seen["attention"]],
        "mlp_norm": [over(size(value)) for value in seen["mlp"]],
        "attention_mlp_ratio": [
            over(lambda kind, a=a, m=m: size(a)(kind) / size(m)(kind))
            for a, m in zip(seen["attention"], seen["mlp"], strict=True)
        ],
    }
    if family not in PARALLEL:
        middle = [x + a for x, a in zip(seen["in"], seen["attention"], strict=True)]
        found["middle_norm"] = [over(size(value)) for value in middle]
        found["mlp_middle_ratio"] = [
            over(lambda kind, m=m, x=x: size(m)(kind) / size(x)(kind))
            for m, x in zip(seen["mlp"], middle, strict=True)
        ]
    cosine = [cosines(x, y) for x, y in zip(seen["in"], seen["out"], strict=True)]
    found["block_influence"] = [1 - value[:, 1:-1].mean(1) for value in cosine]
    layers = len(seen["in"])
    angles = np.full((layers, layers, len(tokens)), np.nan)
    for low in range(layers):
        for span in range(1, layers + 1 - low):
            cosine_of_last = cosines(states[low], states[low + span])[:, -1]
            angles[low, span - 1] = np.arccos(np.clip(cosine_of_last, -1, 1)) / np.pi
    return {
        **{name: np.stack(values) for name, values in found.items()},
        "angular_distance": angles,
    }


def similarity(model: Module, tokens: Tensor) -> np.ndarray:
    """Cosines (comparison, component, processing, layer, sequence) from models rebuilt in order."""
    layers = model.config.num_hidden_layers
    seen = run(model, tokens)
    processings = 2 if centred(model) else 1
    found = np.full((5, 2, processings, layers, len(tokens)), np.nan)
    for low in range(layers - 1):
        order = list(range(layers))
        order[low], order[low + 1] = low + 1, low
        swapped = run(rebuilt(model, tuple(order)), tokens)
        for component, name in enumerate(("attention", "mlp")):
            first, second = seen[name][low], seen[name][low + 1]
            early, late = swapped[name][low], swapped[name][low + 1]
            pairs = (
                (first, second),
                (late, first),
                (early, second),
                (early, first),
                (late, second),
            )
            for comparison, (x, y) in enumerate(pairs):
                for processing in range(processings):
                    if processing:
                        x, y = (z - z.mean(-1, keepdim=True) for z in (x, y))
                    value = cosines(x, y)[:, 1:-1].mean(1)
                    found[comparison, component, processing, low] = value
    return found


def cosines(x: Tensor, y: Tensor) -> np.ndarray:
    dot = (x * y).sum(-1)
    return (dot / (x.norm(dim=-1) * y.norm(dim=-1))).numpy()
