"""The text that a model is trained on: read once, some documents held out, hashed and encoded."""

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
"""Documents that are encoded at once."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Source:
    """The documents of one source, divided."""

    name: str
    train: list[str]
    held_out: list[str]
    sha256: str
    """Of all documents in their order."""


@dataclass(frozen=True, eq=False)
class Texts:
    """The token ids of several sources, each joined into one row, and how often each is drawn."""

    names: tuple[str, ...]
    train: tuple[Ids, ...]
    held_out: tuple[Ids, ...]
    weights: NDArray[np.float64]
    """Shares, which sum to 1."""
    bos: int
    vocabulary: int

    def batch(self, step: int, *, seed: int, size: int, context: int) -> Tensor:
        """Return the sequences of a step, int64 of shape (sequence, token), BOS first.

        A function of the seed and the step alone, so a resumed run draws what it would have drawn.
        """
        random = np.random.default_rng((seed, step))
        width = context - 1
        rows = []
        for source in random.choice(len(self.train), size=size, p=self.weights):
            ids = self.train[source]
            start = random.integers(0, len(ids) - width + 1)
            rows.append(np.concatenate([[self.bos], ids[start : start + width]]))
        return torch.from_numpy(np.stack(rows))

    def windows(self, source: int, context: int) -> Tensor:
        """Held-out sequences of a source, int64 of shape (sequence, token), BOS first."""
        width = context - 1
        ids = self.held_out[source]
        rows = ids[: len(ids) // width * width].reshape(-1, width)
        return torch.from_numpy(np.concatenate([np.full((len(rows), 1), self.bos), rows], axis=1))


def read(source: str | Path, *, seed: int, held_out: float, field: str = "text") -> Source:
    """Read a source, and divide its documents into those trained on and those held out, seeded."""
    name = source_name(source)
    found, digest = [], hashlib.sha256()
    for _, text in documents(source, seed=seed, field=field):
        content = text.encode(errors="surrogatepass")
        digest.update(f"{len(content)} ".encode() + content)
        found.append(text)
    count = max(1, round(held_out * len(found)))
    if len(found) <= count:
        raise Refusal(
            f"{name} has {len(found)} document(s), too few to hold any out: divide it into more"
        )
    return Source(name, found[count:], found[:count], digest.hexdigest())


def share(weights: Sequence[float], sources: int) -> NDArray[np.float64]:
    """Return how often each of some sources is drawn, of 1; equally without weights."""
    shares = np.asarray(tuple(weights) or (1.0,) * sources, dtype=np.float64)
    if not sources or len(shares) != sources or not (np.isfinite(shares) & (shares > 0)).all():
        raise Refusal(
            f"{sources} source(s) take as many weights, finite and above 0, not {tuple(weights)}"
        )
    shares = shares / shares.max()
    return shares / shares.sum()


def encode(
    sources: Sequence[Source], shares: NDArray[np.float64], context: int, tokenizer: Any
) -> Texts:
    """Encode all sources; documents are joined by EOS.

    Raises
    ------
    Refusal
        If a source is shorter than a sequence, or what is held out of it is.
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
        bos=int(tokenizer.bos_token_id),
        vocabulary=size,
    )


def _join(texts: list[str], tokenizer: Any) -> Ids:
    rows = []
    for start in range(0, len(texts), TOGETHER):
        part = texts[start : start + TOGETHER]
        encoded = tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
        rows += [np.array([*ids, tokenizer.eos_token_id], dtype=np.int64) for ids in encoded]
    return np.concatenate(rows)
