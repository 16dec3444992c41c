"""Training of a small decoder from scratch, as the built-in models were trained."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import xarray as xr

from recipes.training.card import card, prose
from recipes.training.log import to_dataset
from recipes.training.loop import train
from recipes.training.settings import Pretraining, TrainingOptions
from recipes.training.state import CHECKPOINT, read_made_of
from recipes.training.text import Source, Texts, encode, read, share
from recipes.training.tokenizer import check, hash_of, train_tokenizer
from recipes.training.untrained import check_memory
from robustness.errors import Refusal
from robustness.files import manifest
from robustness.files.atomic import remove_leftovers
from robustness.files.directory import WRITING, check_name, unwritable, write_into
from robustness.files.directory import clear as clear_directory
from robustness.files.lock import Lock
from robustness.files.manifest import Manifest
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
    directory = directory.expanduser()
    check_name(directory)
    if directory.exists() and not directory.is_dir():
        raise Refusal(f"{directory} is a file: choose another place")
    with Lock(directory / CHECKPOINT) as lock:
        earlier = _claim(directory, clear=lock.held)
        texts = [read(source, seed=settings.seed, held_out=settings.held_out) for source in sources]
        given = tokenizer is not None
        tokenizer = tokenizer if given else _train_tokenizer(texts, settings)
        check("the tokenizer", tokenizer)
        data = encode(texts, shares, settings.context, tokenizer)
        check_memory(settings, data.vocabulary)
        # Cut now: a tokenizer that cannot encode it would otherwise fail after hours of training.
        corpus = prose(tokenizer, settings.context)
        made_of = _describe(settings, data, texts, tokenizer)
        if earlier is not None and _is_finished(directory, earlier, made_of):
            options.tell(f"{directory} holds this model already: nothing is trained")
            return load(directory / LOG)
        model, log = train(directory / CHECKPOINT, data, settings, tokenizer, made_of, options)
        dataset = to_dataset(log, data, settings, given)

        def write(where: Path) -> None:
            model.save_pretrained(where)
            tokenizer.save_pretrained(where)
            save(dataset, where / LOG)
            (where / "README.md").write_text(card(where, dataset, corpus), encoding="utf-8")

        write_into(directory, write, kind=KIND, made_of=made_of)
        # Last of all: while it is there, an interrupted call is known to be unfinished.
        with unwritable(directory):
            (directory / CHECKPOINT).unlink()
        return dataset


def _claim(directory: Path, *, clear: bool) -> Manifest | None:
    """Make the directory of a training, or refuse it; return its manifest if there is one."""
    with unwritable(directory):
        directory.mkdir(parents=True, exist_ok=True)
        earlier = _find(directory)
        if clear:
            remove_leftovers(directory / CHECKPOINT)
            clear_directory(directory)
    return earlier


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


def _find(directory: Path) -> Manifest | None:
    """Return the manifest of a directory, and refuse a directory with other things."""
    earlier = manifest.read(directory)
    if earlier is not None and earlier.kind != KIND:
        raise Refusal(f"{directory} holds a {earlier.kind}: choose another directory")
    if os.path.lexists(directory / CHECKPOINT):
        read_made_of(directory / CHECKPOINT)
    elif earlier is None:
        # Files that an interrupted call was writing are no reason to refuse its directory.
        ours = (f".{CHECKPOINT}.", WRITING)
        for path in sorted(directory.iterdir()):
            if not path.name.startswith(ours):
                raise Refusal(
                    f"{directory} holds {path.name}, and no training of stages: choose another "
                    "directory"
                )
    return earlier


def _is_finished(directory: Path, earlier: Manifest, made_of: dict[str, str]) -> bool:
    """Whether a directory holds all files of the model; another model is refused.

    While there is a checkpoint, files of the model may be missing.
    """
    checkpoint = directory / CHECKPOINT
    wrong = [*earlier.missing(directory), *earlier.changed(directory)]
    if checkpoint.exists() and wrong:
        return False
    different = manifest.difference(earlier.made_of, made_of)
    if different:
        raise Refusal(
            f"{directory} holds a model that was trained {different}: choose another directory"
        )
    if wrong:
        raise Refusal(
            f"{directory} holds this model, but {wrong[0]} is not what was written: choose another "
            "directory"
        )
    checkpoint.unlink(missing_ok=True)
    return True
