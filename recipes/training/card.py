"""Card of a model trained here: its training, its losses, a sweep of it, and continuations."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from recipes.views import as_text, table
from robustness.models.model import Model
from robustness.models.opening import open_model
from robustness.statistics.uncertainty import band, standard_error
from robustness.sweeps import sweep
from robustness.text.corpus import Corpus, cut
from robustness.text.encoding import encode_with_bos

PROMPTS = (
    "Once upon a time, there was a little girl named",
    "One day, Tom and his dog went to the",
    "The bird was sad because",
    "My fellow citizens, the duty of this nation is",
    "In the early morning the old man",
)
"""Prompts of the greedy continuations in a card."""

CONTINUATION = 40
"""Maximum number of tokens of a continuation."""


def prose(tokenizer: Any, context: int) -> Corpus:
    """Cut the built-in prose, which the sweep in a card runs on."""
    return cut("builtin", tokenizer, context=min(128, context))


def card(directory: Path, log: xr.Dataset, corpus: Corpus) -> str:
    """Write the card of a model, in Markdown.

    Parameters
    ----------
    directory : path
        Directory of the model.
    log : Dataset
        Log of its training, as `recipes.training.pretrain` returns it.
    corpus : Corpus
        Result of `prose`, with the model's tokenizer.

    Returns
    -------
    str
        Training, held-out losses beside those of n-gram models of the same text, effects of
        dropping and swapping blocks on the built-in prose, and greedy continuations.
    """
    model = open_model(directory)
    blocks = f"{model.layers} block{'' if model.layers == 1 else 's'}"
    written = list(_continuations(model))
    # A model of one block has nothing left when it is dropped, and no block to swap it with.
    data = sweep(model, corpus) if model.layers > 1 else None
    lines = [
        f"# {model.identity['architecture']}, {blocks} of width {log.attrs['width']}",
        "",
        *_training(log),
        "",
        "## How well it predicts",
        "",
        *_losses(log),
        "",
        *([] if data is None else _sweep(data)),
        *(["## Greedy continuations", "", *written] if written else []),
    ]
    return "\n".join(lines) + "\n"


def _training(log: xr.Dataset) -> Iterator[str]:
    attrs = log.attrs
    seen = log.sizes["step"] * attrs["batch"] * attrs["context"]
    given = attrs.get("tokenizer") == "given"
    yield (
        f"Trained from scratch on {seen:,} tokens in {log.sizes['step']:,} steps of "
        f"{attrs['batch']} × {attrs['context']} tokens (AdamW, learning rate "
        f"{attrs['learning_rate']}, seed {attrs['seed']}); "
        f"{'a given tokenizer' if given else 'a byte-level BPE'} of {attrs['vocabulary']:,} "
        f"tokens; {100 * attrs['held_out']:.0f} % of the documents of each source held out. The "
        "log is `pretraining.nc`; `stages pretrain --help` says how to make it again."
    )
    yield ""
    yield "| source | share of what was seen | training tokens | held-out tokens |"
    yield "|---|--:|--:|--:|"
    for name, row in _sources(log):
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
    for name, row in _sources(log.isel(evaluation=-1)):
        yield (
            f"| {name} | {float(row.unigram_loss):.3f} | {float(row.trigram_loss):.3f} "
            f"| {float(row.held_out_loss):.3f} |"
        )


def _sources(log: xr.Dataset) -> Iterator[tuple[str, xr.Dataset]]:
    """Yield every source with its name, which two files may share, as a cell of a table."""
    for place, name in enumerate(log["source"].values):
        # A source is named by the user's file, whose name may hold anything.
        plain = "".join(letter if letter.isprintable() else "?" for letter in str(name))
        yield plain.replace("|", "\\|"), log.isel(source=place)


def _sweep(data: xr.Dataset) -> list[str]:
    return [
        "## What dropping and swapping blocks does",
        "",
        *_findings(data),
        "",
        f"On {data.attrs['tokens']:,} tokens of the built-in prose, which no part of the training "
        "saw, as every value below: mean ± standard error clustered by document.",
        "",
        "```text",
        as_text(table(data)),
        "```",
        "",
    ]


def _findings(data: xr.Dataset) -> Iterator[str]:
    """Yield the numbers behind three findings of the paper, whether or not they hold here.

    The interior blocks are those between the first and the last; a model of few blocks has fewer
    findings.
    """
    last = data.sizes["layer"] - 1
    mean, error = data.kl.mean("sequence"), standard_error(data.kl)
    dropped = mean.sel(intervention="drop")
    first = float(dropped.sel(layer=0))
    bound = float(error.sel(intervention="drop", layer=0))
    cost = f"- Dropping block 0 costs {first:.2f} ± {bound:.2f} nats"
    interior = dropped.isel(layer=slice(1, last))
    typical = float(interior.median()) if interior.size else 0.0
    if typical > 0:
        cost += f", {first / typical:.0f} times the median of the interior blocks ({typical:.3f})"
    yield f"{cost}."
    # Swapping the last interior block moves the last block, too, and is left out.
    swapped = data.isel(layer=slice(1, last - 1))
    if not swapped.sizes["layer"]:
        return
    kept = swapped.agreement.sel(intervention="swap").mean("layer")
    yield (
        f"- Under swaps of interior blocks {float(kept.mean()):.3f} ± "
        f"{float(standard_error(kept)):.3f} of the top-1 predictions stay the same."
    )
    paired = swapped.kl.sel(intervention="swap") - swapped.kl.sel(intervention="drop")
    milder = paired.mean("sequence") < 0
    ends = band(paired)
    certain = (ends.sel(end="low") > 0) | (ends.sel(end="high") < 0)
    yield (
        f"- Swapping a block with the next harms less than dropping it at {int(milder.sum())} of "
        f"{milder.size} interior layers (where the 95 % interval of the paired difference leaves "
        "0 out: "
        f"less at {int((milder & certain).sum())}, more at {int((~milder & certain).sum())})."
    )


def _continuations(model: Model) -> Iterator[str]:
    for prompt in PROMPTS:
        ids = encode_with_bos(model.tokenizer, prompt)
        room = CONTINUATION if model.context is None else model.context - len(ids)
        # A short context may be full with the prompt.
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
