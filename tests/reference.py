"""Recomputes sequences of a sweep's file the plain way: surgery, float64, full log-softmax.

python tests/reference.py FILE MODEL DATA
"""

import sys

import numpy as np
import torch
import xarray as xr
from torch.nn import ModuleList
from transformers import AutoModelForCausalLM, AutoTokenizer

from robustness.corpus import cut
from robustness.schedule import from_text


def differences(file: str, model: str, data: str, sequences: int = 20) -> dict[str, float]:
    """Return the largest difference in every variable, over the first sequences."""
    found = xr.load_dataset(file).isel(sequence=slice(0, sequences))
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).eval()
    corpus = cut(data, AutoTokenizer.from_pretrained(model), context=found.context)
    tokens = torch.from_numpy(corpus.tokens[:sequences])
    holder = net.base_model
    name = next(n for n, part in holder.named_children() if isinstance(part, ModuleList))
    blocks, top, worst = getattr(holder, name), {}, dict.fromkeys(found.data_vars, 0.0)

    def read(steps: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        setattr(holder, name, ModuleList(blocks[step] for step in steps))
        net.config.num_hidden_layers = len(steps)
        with torch.no_grad():
            q = torch.log_softmax(net(tokens, use_cache=False).logits[:, 1:-1], -1)
        loss, entropy = -q.gather(-1, tokens[:, 2:, None])[..., 0], -(q.exp() * q).sum(-1)
        hits = (q.argmax(-1) == tokens[:, 2:]).double()
        return q, {"loss": loss.mean(1), "entropy": entropy.mean(1), "accuracy": hits.mean(1)}

    def note(metric: str, ours: xr.DataArray, plain: torch.Tensor) -> None:
        worst[metric] = max(worst[metric], float(np.abs(ours.values - plain.numpy()).max()))

    p, clean = read(list(range(len(blocks))))
    for metric, values in clean.items():
        note(f"clean_{metric}", found[f"clean_{metric}"], values)
    for place in np.ndindex(found.schedule.shape):
        here = found.isel(intervention=place[0], layer=place[1])
        if text := str(here.schedule.values):
            q, values = read(list(from_text(text, len(blocks))))
            values["kl"] = (p.exp() * (p - q)).sum(-1).mean(1)
            values["agreement"] = (p.argmax(-1) == q.argmax(-1)).double().mean(1)
            values["nonfinite"] = (~q.isfinite()).any(-1).sum(1)
            for metric, numbers in values.items():
                note(metric, here[metric], numbers)
            top[place] = q.argmax(-1).flatten().bincount()
    if found.attrs["sequences"] <= sequences:
        for place, counts in top.items():
            note("modal_share", found.modal_share[place], counts.max() / counts.sum())
    return worst


if __name__ == "__main__":
    print(differences(*sys.argv[1:]))
