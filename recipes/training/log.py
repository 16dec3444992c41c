"""Log of a training: its losses, and those of n-gram models of the same text."""

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
    """Return the log of a training as a dataset.

    Parameters
    ----------
    log : Log
        Losses, and the steps that were followed by an evaluation.
    data : Texts
        Tokens of the training and held-out texts.
    settings : Pretraining
        Settings of the model and its training.
    given : bool
        Whether the tokenizer was given by the user, and not trained.

    Returns
    -------
    Dataset
        As `recipes.training.pretrain` returns it.
    """
    rates = list(map(settings.rate, range(len(log["loss"]))))
    nats = {"units": "nat"}
    # N-gram models see each text once, whatever its share in the training.
    seen = np.concatenate(data.train)
    size = data.vocabulary
    unigram, trigram = [], []
    for source in range(len(data.names)):
        windows = data.windows(source, settings.context).numpy()
        unigram.append(unigram_loss(seen, windows, size))
        trigram.append(trigram_loss(seen, windows, size))
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
                unigram,
                {**nats, "long_name": "held-out loss per token, add-one unigram model"},
            ),
            "trigram_loss": (
                "source",
                trigram,
                {**nats, "long_name": "held-out loss per token, interpolated trigram model"},
            ),
        },
        coords=coordinates(log, data),
        attrs=file_attributes(
            _attributes(settings)
            | {"vocabulary": size, "tokenizer": "given" if given else "trained"}
        ),
    )


def coordinates(log: Log, data: Texts) -> dict[str, Any]:
    """Return the coordinates of a log: evaluations, and the texts with their sizes."""
    return {
        # Steps come as floats from a checkpoint, which keeps numbers of one type.
        "evaluation": list(map(int, log["evaluated"])),
        "source": list(data.names),
        "weight": ("source", data.weights),
        "train_tokens": ("source", list(map(len, data.train))),
        "held_out_tokens": ("source", list(map(len, data.held_out))),
    }


def _attributes(settings: Pretraining) -> dict[str, Any]:
    """Return settings as attributes; NetCDF has no truth values."""
    attributes = asdict(settings)
    for name, value in attributes.items():
        if isinstance(value, bool):
            attributes[name] = int(value)
    return attributes
