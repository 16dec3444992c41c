"""Recomputes sequences of a sweep's file the plain way: surgery, float64, full log-softmax.

It shares no code with the project. The corpus is a `.jsonl` file with a field `text`.

    python tests/oracles/reference.py FILE MODEL DATA
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch.nn import ModuleList
from transformers import AutoModelForCausalLM, AutoTokenizer


def windows(data: str, tokenizer, context: int, sequences: int) -> torch.Tensor:
    """Cut documents, in the order of seed 0, into windows with BOS first."""
    texts = [json.loads(line)["text"] for line in Path(data).read_text().splitlines()]
    order, rows = np.arange(len(texts)), []
    np.random.default_rng(0).shuffle(order)
    for index in order:
        ids = tokenizer(texts[index], add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids) - context + 2, context - 1):
            rows.append([tokenizer.bos_token_id, *ids[start : start + context - 1]])
    return torch.tensor(rows[:sequences])


def differences(file: str, model: str, data: str, sequences: int = 20) -> dict[str, float]:
    """Return the largest difference in every variable, over the first sequences.

    The modal share, which is of all sequences, is compared where there are no more.
    """
    found = xr.load_dataset(file).isel(sequence=slice(0, sequences))
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).eval()
    tokens = windows(data, AutoTokenizer.from_pretrained(model), found.context, sequences)
    holder = net.base_model
    name = next(n for n, part in holder.named_children() if isinstance(part, ModuleList))
    blocks, worst = getattr(holder, name), {}

    def read(steps):
        setattr(holder, name, ModuleList(blocks[step] for step in steps))
        net.config.num_hidden_layers = len(steps)
        with torch.no_grad():
            q = torch.log_softmax(net(tokens, use_cache=False).logits[:, 1:-1], -1)
        loss, entropy = -q.gather(-1, tokens[:, 2:, None])[..., 0], -(q.exp() * q).sum(-1)
        hits = (q.argmax(-1) == tokens[:, 2:]).double()
        return q, {"loss": loss.mean(1), "entropy": entropy.mean(1), "accuracy": hits.mean(1)}

    def note(metric, ours, plain):
        # Unlike max(), it hands on what is not a number.
        difference = np.abs(ours.values - plain.numpy()).max()
        worst[metric] = float(np.maximum(worst.get(metric, 0.0), difference))

    p, clean = read(range(len(blocks)))
    for metric, values in clean.items():
        note(f"clean_{metric}", found[f"clean_{metric}"], values)
    for place in np.ndindex(found.schedule.shape):
        here = found.isel(intervention=place[0], layer=place[1])
        if not (text := str(here.schedule.values)):
            continue
        spans = [[int(end) for end in part.split("..")] for part in text.split("-")]
        q, values = read([step for span in spans for step in range(span[0], span[-1] + 1)])
        values["kl"] = (p.exp() * (p - q)).sum(-1).mean(1)
        values["agreement"] = (p.argmax(-1) == q.argmax(-1)).double().mean(1)
        values["nonfinite"] = (~q.isfinite()).any(-1).sum(1)
        for metric, numbers in values.items():
            note(metric, here[metric], numbers)
        if found.attrs["sequences"] <= sequences:
            counts = q.argmax(-1).flatten().bincount()
            note("modal_share", found.modal_share[place], counts.max() / counts.sum())
    return worst


if __name__ == "__main__":
    print(differences(*sys.argv[1:]))
