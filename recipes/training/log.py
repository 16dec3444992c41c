"""The log of a training: its losses, and those of n-gram models of the same text."""

from dataclasses import asdict
from typing import Any

import numpy as np
import xarray as xr

from recipes.training.ngram import trigram_loss, unigram_loss
from recipes.training.settings import Pretraining
from recipes.training.state import Log
from recipes.training.text import Texts
from robustness.files.provenance import file_attributes


def to_dataset(log: Log, data: Texts, settings: Pretraining, given: bool) -> xr.Dataset:
    """Return the log of a training as it is saved.

    Parameters
    ----------
    log : Log
        Losses, and the steps after which there was an evaluation.
    data : Texts
        What was trained on, and what was held out.
    settings : Pretraining
        What was trained and how.
    given : bool
        Whether the tokenizer was given, and not trained.

    Returns
    -------
    Dataset
        As `recipes.training.pretrain` returns it.
    """
    rates = [settings.rate(step) for step in range(len(log["loss"]))]
    nats = {"units": "nat"}
    seen = np.concatenate(data.train)
    held_out = [data.windows(i, settings.context).numpy() for i in range(len(data.names))]
    size = data.vocabulary
    return xr.Dataset(
        {
            "loss": ("step", log["loss"], {**nats, "long_name": "training loss per token"}),
            "learning_rate": ("step", rates, {"units": "1", "long_name": "learning rate"}),
            "held_out_loss": (
                ("evaluation", "source"),
                log["held_out_loss"],
                {**nats, "long_name": "held-out loss per token"},
            ),
            "unigram_loss": (
                "source",
                [unigram_loss(seen, windows, size) for windows in held_out],
                {**nats, "long_name": "held-out loss per token, add-one unigram model"},
            ),
            "trigram_loss": (
                "source",
                [trigram_loss(seen, windows, size) for windows in held_out],
                {**nats, "long_name": "held-out loss per token, interpolated trigram model"},
            ),
        },
        coords={
            "evaluation": [int(step) for step in log["evaluated"]],
            "source": list(data.names),
            "weight": ("source", data.weights),
            "train_tokens": ("source", [len(ids) for ids in data.train]),
            "held_out_tokens": ("source", [len(ids) for ids in data.held_out]),
        },
        attrs=file_attributes(
            _attributes(settings)
            | {"vocabulary": size, "tokenizer": "given" if given else "trained"}
        ),
    )


def _attributes(settings: Pretraining) -> dict[str, Any]:
    """Return settings as NetCDF takes them, which knows no truth values."""
    attributes = asdict(settings)
    for name, value in attributes.items():
        if isinstance(value, bool):
            attributes[name] = int(value)
    return attributes
