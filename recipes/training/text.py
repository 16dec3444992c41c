"""Text that a model is trained on: documents are read, divided, hashed and encoded."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.training.tokenizer import size_of
from robustness.errors import Refusal, reading
from robustness.text.sources import documents, source_name

TOGETHER = 1000
"""Number of documents that are encoded at once."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Source:
    """The documents of one source, divided."""

    name: str
    """Name of the source, for messages and files."""
    train: list[str]
    """Documents that are trained on."""
    held_out: list[str]
    """Documents that are not."""
    sha256: str
    """Hash of all documents, in order."""


@dataclass(frozen=True, eq=False)
class Texts:
    """The token ids of several sources, each joined into one row, and how often each is drawn."""

    names: tuple[str, ...]
    """Names of the sources."""
    train: tuple[Ids, ...]
    """Token ids of each source that are trained on."""
    held_out: tuple[Ids, ...]
    """Token ids of each source that are not."""
    weights: NDArray[np.float64]
    """Probabilities with which sources are drawn."""
    bos: int | None
    """Token id that each sequence begins with, if any."""
    vocabulary: int
    """Number of tokens that the model needs."""

    def batch(self, step: int, *, seed: int, size: int, context: int) -> Tensor:
        """Return the sequences of a step, int64 of shape (sequence, token), BOS first if any.

        They depend on the seed and the step alone, so that a resumed run draws the same sequences.
        """
        random = np.random.default_rng((seed, step))
        first = self._first
        width = context - len(first)
        rows = []
        for source in random.choice(len(self.train), size=size, p=self.weights):
            ids = self.train[source]
            start = random.integers(0, len(ids) - width + 1)
            rows.append(np.concatenate([first, ids[start : start + width]]))
        return torch.from_numpy(np.stack(rows))

    def windows(self, source: int, context: int) -> Tensor:
        """Return held-out sequences of a source, int64 of shape (sequence, token)."""
        width = context - len(self._first)
        ids = self.held_out[source]
        rows = ids[: len(ids) // width * width].reshape(-1, width)
        first = np.tile(self._first, (len(rows), 1))
        return torch.from_numpy(np.concatenate([first, rows], axis=1))

    @property
    def _first(self) -> Ids:
        """Token ids that each sequence begins with."""
        return np.array([] if self.bos is None else [self.bos], dtype=np.int64)


def read(source: str | Path, *, seed: int, held_out: float, field: str = "text") -> Source:
    """Read a source in random order, and hold out the first documents."""
    name = source_name(source)
    texts, digest = [], hashlib.sha256()
    for _, text in documents(source, seed=seed, field=field):
        content = text.encode(errors="surrogatepass")
        # With their lengths, so that the same text divided otherwise has another hash.
        digest.update(f"{len(content)} ".encode() + content)
        texts.append(text)
    count = max(1, round(held_out * len(texts)))
    if len(texts) <= count:
        raise Refusal(
            f"{name} has {len(texts)} document(s), too few to hold any out: divide it into more"
        )
    return Source(name, texts[count:], texts[:count], digest.hexdigest())


def share(weights: Sequence[float], sources: int) -> NDArray[np.float64]:
    """Return the probability of each source, in proportion to its weight; equal without weights."""
    shares = np.asarray(tuple(weights) or (1.0,) * sources, dtype=np.float64)
    if not sources or len(shares) != sources or not (np.isfinite(shares) & (shares > 0)).all():
        raise Refusal(
            f"{sources} source(s) take as many weights, finite and above 0, not {tuple(weights)}"
        )
    # Divided by the largest first, so that the sum of very large weights does not overflow.
    shares = shares / shares.max()
    return shares / shares.sum()


def encode(
    sources: Sequence[Source], shares: NDArray[np.float64], context: int, tokenizer: Any
) -> Texts:
    """Encode all sources; documents are joined by EOS.

    Raises
    ------
    Refusal
        If the documents of a source, or those held out of it, are shorter than a sequence.
    """
    train, held_out, size = [], [], size_of(tokenizer)
    for source in sources:
        with reading(source.name, "leave out what no tokenizer can encode"):
            train.append(_join(source.train, tokenizer))
            held_out.append(_join(source.held_out, tokenizer))
        for ids, which in ((train[-1], "to train on"), (held_out[-1], "held out")):
            if len(ids) < context:
                raise Refusal(
                    f"{source.name} has {len(ids)} tokens {which}, fewer than one sequence of "
                    f"{context}: read a longer text, or lower `context`"
                )
            if ids.min() < 0 or ids.max() >= size:
                raise Refusal(
                    f"the tokenizer gives {source.name} tokens beyond its vocabulary of {size}: "
                    "take another"
                )
    return Texts(
        names=tuple(source.name for source in sources),
        train=tuple(train),
        held_out=tuple(held_out),
        weights=shares,
        bos=tokenizer.bos_token_id,
        vocabulary=size,
    )


def _join(texts: list[str], tokenizer: Any) -> Ids:
    """Return the token ids of documents in one row, each document ended by EOS."""
    rows = []
    for start in range(0, len(texts), TOGETHER):
        some = texts[start : start + TOGETHER]
        encoded = tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
        for ids in encoded:
            rows.append(np.array([*ids, tokenizer.eos_token_id], dtype=np.int64))
    return np.concatenate(rows)
