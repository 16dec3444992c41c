"""The card of a model trained here: on what, how long, how well, and what a sweep of it shows."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from recipes.tables import table
from robustness.corpus import cut
from robustness.execution import sweep
from robustness.model import Model, open_model
from robustness.uncertainty import standard_error

PROMPTS = (
    "Once upon a time, there was a little girl named",
    "One day, Tom and his dog went to the",
    "The bird was sad because",
    "My fellow citizens, the duty of this nation is",
    "In the early morning the old man",
)
"""What the greedy continuations in a card begin with."""

CONTINUATION = 40
"""Tokens of a continuation."""


def card(directory: Path, log: xr.Dataset) -> str:
    """Write the card of a model, in Markdown.

    Parameters
    ----------
    directory : path
        The model.
    log : Dataset
        What its training left, as from `recipes.pretrain.pretrain`.

    Returns
    -------
    str
        Training, held-out losses beside n-gram models of the same text, what dropping and swapping
        blocks does on the built-in prose, and greedy continuations.
    """
    model = open_model(directory)
    corpus = cut("builtin", model.tokenizer, context=min(128, model.context or 128))
    data = sweep(model, corpus)
    lines = [
        f"# {model.identity['architecture']}, {model.layers} blocks of width {log.attrs['width']}",
        "",
        *_training(log),
        "",
        "## How well it predicts",
        "",
        *_losses(log),
        "",
        "## What dropping and swapping blocks does",
        "",
        *_findings(data),
        "",
        "```text",
        table(data),
        "```",
        "",
        "## Greedy continuations",
        "",
        *_continuations(model),
    ]
    return "\n".join(lines) + "\n"


def _training(log: xr.Dataset) -> Iterator[str]:
    attrs = log.attrs
    seen = log.sizes["step"] * attrs["batch"] * attrs["context"]
    yield (
        f"Trained from scratch on {seen:,} tokens in {log.sizes['step']:,} steps of "
        f"{attrs['batch']} × {attrs['context']} tokens (AdamW, learning rate "
        f"{attrs['learning_rate']}, seed {attrs['seed']}); a byte-level BPE of "
        f"{attrs['vocabulary']:,} tokens; "
        f"{100 * attrs['held_out']:.0f} % of the documents of each source held out. The log is "
        "`pretraining.nc`; `stages pretrain --help` says how to make it again."
    )
    yield ""
    yield "| source | share of what was seen | training tokens | held-out tokens |"
    yield "|---|--:|--:|--:|"
    for name in log["source"].values:
        row = log.sel(source=name)
        yield (
            f"| {name} | {float(row.weight):.0%} | {int(row.train_tokens):,} "
            f"| {int(row.held_out_tokens):,} |"
        )


def _losses(log: xr.Dataset) -> Iterator[str]:
    yield (
        "Loss in nats per token on the held-out documents. The trigram model is interpolated, its "
        "weights fitted to the held-out text itself."
    )
    yield ""
    yield "| source | unigram | trigram | this model |"
    yield "|---|--:|--:|--:|"
    for name in log["source"].values:
        row = log.sel(source=name).isel(evaluation=-1)
        yield (
            f"| {name} | {float(row.unigram_loss):.3f} | {float(row.trigram_loss):.3f} "
            f"| {float(row.held_out_loss):.3f} |"
        )


def _findings(data: xr.Dataset) -> Iterator[str]:
    """State three things the paper saw, with numbers, whether they hold here or not."""
    last = data.sizes["layer"] - 1
    interior = data.isel(layer=slice(1, last))
    mean, error = data.kl.mean("sequence"), standard_error(data.kl)
    first = mean.sel(intervention="drop", layer=0)
    typical = float(interior.kl.mean("sequence").sel(intervention="drop").median())
    ratio = float(first) / typical
    yield (
        f"- Dropping block 0 costs {float(first):.2f} ± "
        f"{float(error.sel(intervention='drop', layer=0)):.2f} nats, {ratio:.0f} times the median "
        f"of the interior blocks ({typical:.3f})."
    )
    # Swapping the last interior block changes the last block too, and is left out.
    kept = interior.agreement.sel(intervention="swap").isel(layer=slice(0, -1)).mean("layer")
    yield (
        f"- Under swaps of interior blocks {float(kept.mean()):.3f} ± "
        f"{float(standard_error(kept)):.3f} of the top-1 predictions stay the same."
    )
    difference = data.kl.sel(intervention="swap") - data.kl.sel(intervention="drop")
    paired = difference.isel(layer=slice(1, last - 1))
    milder = paired.mean("sequence") < 0
    certain = np.abs(paired.mean("sequence")) > 1.96 * standard_error(paired)
    yield (
        f"- Swapping a block with the next harms less than dropping it at {int(milder.sum())} of "
        f"{milder.size} interior layers (beyond 1.96 standard errors of the paired difference: "
        f"less at {int((milder & certain).sum())}, more at {int((~milder & certain).sum())})."
    )
    yield ""
    yield (
        f"On {data.attrs['tokens']:,} tokens of the built-in prose, which no part of the training "
        "saw, as every value below: mean ± standard error clustered by document."
    )


def _continuations(model: Model) -> Iterator[str]:
    for prompt in PROMPTS:
        ids = [model.tokenizer.bos_token_id, *model.tokenizer(prompt)["input_ids"]]
        room = CONTINUATION if model.context is None else model.context - len(ids)
        if room < 1:
            continue
        with torch.no_grad():
            out = model.traced._module.generate(
                torch.tensor([ids], device=model.device),
                max_new_tokens=min(CONTINUATION, room),
                do_sample=False,
                pad_token_id=model.tokenizer.eos_token_id,
            )
        text = model.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
        space = " " if text[:1].isspace() else ""
        yield f"> **{prompt}**{space}{' '.join(text.split())}"
        yield ""
