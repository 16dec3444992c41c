"""A sweep in shards: the batches of one run, divided among several, and put together again.

A shard runs the very batches that the whole run would, so that what it measures is the same bit for
bit: the numbers of a sequence depend, in their last digits, on what is in its batch. A document may
then have sequences in two shards; its index is that in the corpus, so that it stays one document.
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
    """One of several equal parts of a run."""

    index: int
    """From 1."""
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def beside(self, path: Path) -> Path:
        """Return where a shard of a run is saved, given where the whole is."""
        return path.with_name(f"{path.stem}.shard-{self.index}-of-{self.count}{path.suffix}")

    def rows(self, batches: Sequence[slice]) -> slice:
        """Return the sequences of its share of a run's batches, which follow one another.

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
        first, last = (len(batches) * at // self.count for at in (self.index - 1, self.index))
        return slice(batches[first].start, batches[last - 1].stop)


def parse_shard(text: str) -> Shard:
    """Read a shard, as in 1/4.

    Raises
    ------
    Refusal
        If it is none.
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
    """Return what a file records of a corpus of which it holds a part."""
    described, own = whole.settings(), {"sequences": len(part.tokens)}
    own["tokens"] = int(part.lengths.sum())
    return (
        described
        | own
        | {f"corpus_{name}": described[name] for name in own}
        | {"shard": str(shard)}
    )
