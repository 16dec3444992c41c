"""Training a small decoder from scratch, as the built-in models were."""

import os
from collections.abc import Sequence
from dataclasses import asdict
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
"""What the mark of a directory with a trained model says, and the name of its log."""


def pretrain(
    directory: Path,
    sources: Sequence[str | Path],
    settings: Pretraining | None = None,
    options: TrainingOptions | None = None,
    *,
    weights: Sequence[float] = (),
    tokenizer: Any = None,
) -> xr.Dataset:
    """Train a model and leave it, its tokenizer, its log and its card in a directory.

    An interrupted call, made again, goes on from the last checkpoint; a finished one does nothing.

    Parameters
    ----------
    directory : path
        Where `model.safetensors` (float16), `config.json`, the tokenizer, `pretraining.nc`,
        `README.md` and `stages.json`, which says that they are of this training, go. It is empty,
        or not there, or holds this training; what else is put there then stays as it is.
    sources : sequence of str or path
        Corpora, as `robustness.text.sources.documents` takes them.
    settings : Pretraining, optional
        What is trained and how.
    options : TrainingOptions, optional
        When checkpoints are kept, and who is told.
    weights : sequence of float
        How often each source is drawn, in any unit; equally without them.
    tokenizer : optional
        A tokenizer to use; without one, one is trained on the same texts.

    Returns
    -------
    Dataset
        `loss (step)`, `learning_rate (step)`, `held_out_loss (evaluation, source)`, and what n-gram
        models of the same training text lose there: `unigram_loss`, `trigram_loss` (source).

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
        # What the card needs is looked for before hours of training, not after.
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
        with unwritable(directory):
            (directory / CHECKPOINT).unlink()
        return dataset


def _claim(directory: Path, *, clear: bool) -> Manifest | None:
    """Make the directory of a training, or refuse it; return the mark of what is there."""
    with unwritable(directory):
        directory.mkdir(parents=True, exist_ok=True)
        earlier = _find(directory)
        if clear:
            remove_leftovers(directory / CHECKPOINT)
            clear_directory(directory)
    return earlier


def _train_tokenizer(texts: Sequence[Source], settings: Pretraining) -> Any:
    """Train a tokenizer on what the model is trained on."""
    every = (text for source in texts for text in source.train)
    return train_tokenizer(every, settings.vocabulary)


def _describe(
    settings: Pretraining, data: Texts, texts: Sequence[Source], tokenizer: Any
) -> dict[str, str]:
    """Return what tells this training from any other."""
    made_of = {name: str(value) for name, value in asdict(settings).items()}
    made_of |= {"sources": ", ".join(data.names), "shares": str(data.weights.tolist())}
    for number, text in enumerate(texts, 1):
        made_of[f"sha256 of text {number} ({text.name})"] = text.sha256
    made_of["sha256 of the tokenizer"] = hash_of(tokenizer)
    return made_of


def _find(directory: Path) -> Manifest | None:
    """Return the mark of what was trained in a directory, and refuse one with other things."""
    found = manifest.read(directory)
    if found is not None and found.kind != KIND:
        raise Refusal(f"{directory} holds a {found.kind}: choose another directory")
    if os.path.lexists(directory / CHECKPOINT):
        read_made_of(directory / CHECKPOINT)
    elif found is None:
        hidden = (f".{CHECKPOINT}.", WRITING)
        names = (path.name for path in directory.iterdir())
        for name in sorted(name for name in names if not name.startswith(hidden))[:1]:
            raise Refusal(
                f"{directory} holds {name}, and no training of stages: choose another directory"
            )
    return found


def _is_finished(directory: Path, found: Manifest, made_of: dict[str, str]) -> bool:
    """Return whether the model is there, and refuse another one.

    While there is a checkpoint, files of the model may be missing.
    """
    checkpoint = directory / CHECKPOINT
    wrong = [*found.missing(directory), *found.changed(directory)]
    if checkpoint.exists() and wrong:
        return False
    different = manifest.difference(found.made_of, made_of)
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
