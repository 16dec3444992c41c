"""Shards of a sweep: the batches of one run, divided among several machines or processes.

A shard runs the same batches as the whole run, so that its results are the same bit for bit: the
last digits of a sequence's numbers depend on the other sequences of its batch. A document may have
sequences in two shards. Its index is that in the corpus, so that it stays one document.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustness.errors import Refusal
from robustness.text.corpus import Corpus


@dataclass(frozen=True)
class Shard:
    """One of several parts of a run with about as many batches each."""

    index: int
    """Number of the shard, from 1."""
    count: int
    """Number of shards."""

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def beside(self, path: Path) -> Path:
        """Return the path of the shard's file, given the path of the whole run's file."""
        return path.with_name(f"{path.stem}.shard-{self.index}-of-{self.count}{path.suffix}")

    def rows(self, batches: Sequence[slice]) -> slice:
        """Return the sequences of the shard, all of its batches in a row.

        Raises
        ------
        Refusal
            If there are fewer batches than shards.
        """
        if len(batches) < self.count:
            raise Refusal(
                f"{self.count} shards were asked for, and the run has {len(batches)} batch(es): "
                f"ask for {len(batches)} or fewer, more `tokens`, or lower `batch_tokens`"
            )
        first = len(batches) * (self.index - 1) // self.count
        last = len(batches) * self.index // self.count
        return slice(batches[first].start, batches[last - 1].stop)


def parse_shard(text: str) -> Shard:
    """Read a shard from text such as `1/4`.

    Raises
    ------
    Refusal
        If the text names no shard.
    """
    match = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text)
    if match is None or int(match[1]) > int(match[2]):
        count = int(match[2]) if match else 4
        raise Refusal(
            f"`shard` {text}: there is no such shard; the first of {count} is 1/{count}, and the "
            f"last {count}/{count}"
        )
    return Shard(int(match[1]), int(match[2]))


def shard_attributes(whole: Corpus, part: Corpus, shard: Shard) -> dict[str, Any]:
    """Return the attributes that describe the text of a shard, and the text of its run."""
    attributes = whole.settings()
    # Merged shards have the counts of the whole run again.
    for name in ("sequences", "tokens"):
        attributes[f"corpus_{name}"] = attributes[name]
    attributes["sequences"] = len(part.tokens)
    attributes["tokens"] = int(part.lengths.sum())
    return attributes | {"shard": str(shard)}
