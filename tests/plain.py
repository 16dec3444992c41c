"""What the clean run shows, recomputed on plain transformers models with hooks, in float64."""

import math
from typing import Any

import numpy as np
import torch
from families import BLOCKS, rebuilt
from torch import Tensor
from torch.nn import Module

ATTENTION = {"gpt2": "attn", "gpt_neox": "attention"}
NORMS = {
    "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "llama": "model.norm",
    "qwen2": "model.norm",
    "phi": "model.final_layernorm",
}
PARALLEL = {"gpt_neox", "phi"}
CENTRED = {"gpt2", "gpt_neox", "phi"}


def run(model: Module, tokens: Tensor) -> dict[str, Any]:
    """Run a model and keep what enters and leaves its blocks, and what its sublayers write."""
    family = model.config.model_type
    seen: dict[str, list[Tensor]] = {"in": [], "out": [], "attention": [], "mlp": [], "final": []}

    def keep(name):
        def hook(_module, _args, output):
            seen[name].append((output[0] if isinstance(output, tuple) else output).detach())

        return hook

    def keep_input(name):
        def hook(_module, args, kwargs):
            seen[name].append((args[0] if args else kwargs["hidden_states"]).detach())

        return hook

    handles = []
    for block in model.get_submodule(BLOCKS[family]):
        attention = block.get_submodule(ATTENTION.get(family, "self_attn"))
        handles += [
            block.register_forward_pre_hook(keep_input("in"), with_kwargs=True),
            block.register_forward_hook(keep("out")),
            attention.register_forward_hook(keep("attention")),
            block.mlp.register_forward_hook(keep("mlp")),
        ]
    norm = model.get_submodule(NORMS[family])
    handles.append(norm.register_forward_pre_hook(keep_input("final"), with_kwargs=True))
    with torch.no_grad():
        patterns = model.config._attn_implementation == "eager"
        out = model(tokens, use_cache=False, output_attentions=patterns)
    for handle in handles:
        handle.remove()
    return {**seen, "logits": out.logits, "patterns": out.attentions}


def lens(model: Module, tokens: Tensor) -> dict[str, np.ndarray]:
    """Readouts (lens, depth, sequence), over all but the first and the last query."""
    family, head = model.config.model_type, model.get_output_embeddings()
    seen = run(model, tokens)
    norm = model.get_submodule(NORMS[family])
    final = torch.log_softmax(seen["logits"], -1)[:, 1:-1]
    following = tokens[:, 2:, None]
    found: dict[str, list[list[Tensor]]] = {}

    def scale(state):
        eps = getattr(norm, "eps", getattr(norm, "variance_epsilon", None))
        if family in CENTRED:
            state = state - state.mean(-1, keepdim=True)
        return torch.sqrt((state**2).mean(-1, keepdim=True) + eps)

    for frozen in (False, True):
        for values in found.values():
            values.append([])
        for state in [*seen["in"], seen["final"][0]]:
            with torch.no_grad():
                if frozen:
                    moved = state - state.mean(-1, keepdim=True) if family in CENTRED else state
                    normed = moved / scale(seen["final"][0]) * norm.weight
                    logits = normed @ head.weight.T
                else:
                    logits = head(norm(state))
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
    """Loops over queries: profile (layer, head, offset, sequence) and what else is reduced."""
    patterns = torch.stack(run(model, tokens)["patterns"]).numpy()
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
    family = model.config.model_type
    seen = run(model, tokens)
    states = [*seen["in"], seen["final"][0]]

    def statistics(values):  # (sequence, token)
        inner = values[:, 1:-1]
        return np.stack([inner.mean(1), np.median(inner, axis=1), values[:, 0]])

    def over(make):
        kinds = [lambda x: x]
        if family in CENTRED:
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
    family, layers = model.config.model_type, model.config.num_hidden_layers
    seen = run(model, tokens)
    processings = 2 if family in CENTRED else 1
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
