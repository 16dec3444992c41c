"""Training of a small decoder from scratch, as the built-in models were trained."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from recipes.training.card import card, prose
from recipes.training.log import to_dataset
from recipes.training.loop import Trainee, milder, train
from recipes.training.loss import held_out_loss, next_token_loss
from recipes.training.place import Place
from recipes.training.settings import Pretraining, TrainingOptions
from recipes.training.state import Course
from recipes.training.text import Source, Texts, encode, read, share
from recipes.training.tokenizer import check, hash_of, train_tokenizer
from recipes.training.untrained import build_model, build_optimizer, check_memory
from robustness.errors import Refusal
from robustness.files.lock import Lock
from robustness.files.netcdf import load, save

KIND, LOG = "pretraining", "pretraining.nc"
"""Kind of a directory with a trained model, as its manifest has it, and file name of its log."""


def pretrain(
    directory: Path,
    sources: Sequence[str | Path],
    settings: Pretraining | None = None,
    options: TrainingOptions | None = None,
    *,
    weights: Sequence[float] = (),
    tokenizer: Any = None,
) -> xr.Dataset:
    """Train a model and write it, its tokenizer, its log and its card to a directory.

    An interrupted call resumes from the last checkpoint when it is made again; a finished one does
    nothing.

    Parameters
    ----------
    directory : path
        Directory for `model.safetensors` (float16), `config.json`, the tokenizer, `pretraining.nc`,
        `README.md` and `stages.json`, the manifest of the training. It must be empty, missing, or
        hold this training; files that are added later stay as they are.
    sources : sequence of str or path
        Corpora, as `robustness.text.sources.documents` takes them.
    settings : Pretraining, optional
        Settings of the model and its training.
    options : TrainingOptions, optional
        Interval of checkpoints, and callbacks.
    weights : sequence of float
        Relative frequencies with which sources are drawn; by default all are equal.
    tokenizer : optional
        Tokenizer to use; by default one is trained on the same texts.

    Returns
    -------
    Dataset
        `loss (step)`, `learning_rate (step)` and `held_out_loss (evaluation, source)`; losses of
        n-gram models of the same training text, `unigram_loss` and `trigram_loss` (source).

    Raises
    ------
    Refusal
        If a source cannot be read, the directory holds anything else, or the loss diverges.
    """
    settings, options = settings or Pretraining(), options or TrainingOptions()
    shares = share(weights, len(sources))
    place = Place(directory.expanduser(), KIND)
    with Lock(place.checkpoint) as lock:
        earlier = place.claim(alone=lock.held)
        texts = [read(source, seed=settings.seed, held_out=settings.held_out) for source in sources]
        given = tokenizer is not None
        tokenizer = tokenizer if given else _train_tokenizer(texts, settings)
        check("the tokenizer", tokenizer)
        data = encode(texts, shares, settings.context, tokenizer)
        check_memory(settings, data.vocabulary)
        # Cut now: a tokenizer that cannot encode it would otherwise fail after hours of training.
        corpus = prose(tokenizer, settings.context)
        made_of = _describe(settings, data, texts, tokenizer)
        if earlier is not None and place.is_finished(earlier, made_of):
            options.tell(f"{place.directory} holds this model already: nothing is trained")
            return load(place.directory / LOG)
        trainee = _trainee(settings, data, tokenizer)
        course = Course(place.checkpoint, KIND, made_of)
        log = train(course, trainee, data, settings, options)
        model = trainee.model
        _halve(model, settings)
        dataset = to_dataset(log, data, settings, given)

        def write(where: Path) -> None:
            model.save_pretrained(where)
            tokenizer.save_pretrained(where)
            save(dataset, where / LOG)
            (where / "README.md").write_text(card(where, dataset, corpus), encoding="utf-8")

        place.finish(write, made_of)
        return dataset


def _trainee(settings: Pretraining, data: Texts, tokenizer: Any) -> Trainee:
    """Return an untrained model with its losses."""
    model = build_model(settings, tokenizer)
    # The model itself is kept: the names of a compiled one's parameters have a prefix.
    compiled = torch.compile(model) if settings.compile else model

    def learn(tokens: Tensor) -> Tensor:
        loss = next_token_loss(compiled, tokens, settings.bfloat16)
        loss.backward()
        return loss

    return Trainee(
        model,
        build_optimizer(model, settings),
        learn,
        lambda: {"held_out_loss": held_out_loss(model, data, settings)},
        smaller="lower `batch`, `context`, `layers` or `width`",
    )


def _halve(model: Any, settings: Pretraining) -> None:
    """Convert a model to float16, the type of its file."""
    model.half()
    if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
        raise Refusal(
            "the model has weights beyond the range of float16, in which it would be written: "
            f"{milder(settings)}"
        )


def _train_tokenizer(texts: Sequence[Source], settings: Pretraining) -> Any:
    """Train a tokenizer on the documents that the model is trained on."""
    documents = chain.from_iterable(source.train for source in texts)
    return train_tokenizer(documents, settings.vocabulary)


def _describe(
    settings: Pretraining, data: Texts, texts: Sequence[Source], tokenizer: Any
) -> dict[str, str]:
    """Return the settings and hashes that identify a training."""
    made_of = {name: str(value) for name, value in asdict(settings).items()}
    made_of |= {"sources": ", ".join(data.names), "shares": str(data.weights.tolist())}
    for number, text in enumerate(texts, 1):
        made_of[f"sha256 of text {number} ({text.name})"] = text.sha256
    made_of["sha256 of the tokenizer"] = hash_of(tokenizer)
    return made_of
