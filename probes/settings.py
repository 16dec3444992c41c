"""Settings of the probes: what each of them reads, and how much of it."""

from dataclasses import dataclass
from pathlib import Path

from robustness.errors import Refusal

FEWEST_WINDOWS = 200
"""Minimum number of windows that end in the suffix."""


@dataclass(frozen=True)
class WicSettings:
    """Settings of the word-in-context probe.

    Raises
    ------
    Refusal
        If the distance between depths is less than 1.
    """

    source: str | Path = "builtin"
    """Word-in-context pairs, as `probes.pairs.read_pairs` takes them."""
    seed: int = 0
    """Seed of the shuffled labels and of the bootstrap."""
    every: int = 1
    """Distance between the depths that are probed; the last depth is probed in any case."""

    def __post_init__(self) -> None:
        """Refuse no distance."""
        if self.every < 1:
            raise Refusal(f"every {self.every}th depth: ask for `every` 1 or more")


@dataclass(frozen=True)
class CorpusSettings:
    """Settings of a probe that cuts its inputs from a corpus."""

    source: str | Path = "builtin-sampled"
    """Text that is read, as `robustness.text.sources.documents` takes it."""
    field: str = "text"
    """Name of the column that holds the text."""
    split: str = "train"
    """Split of a data set on the hub."""
    seed: int = 0
    """Seed of the order of documents, of all that is drawn, and of the bootstrap."""


@dataclass(frozen=True)
class SuffixSettings(CorpusSettings):
    """Settings of the probe that predicts a suffix.

    Raises
    ------
    Refusal
        If there are too few items to divide.
    """

    suffix: str = "ing"
    """Ending of the tokens that are predicted."""
    wanted: tuple[int, ...] | None = None
    """Ids of tokens to take instead of those that end in `suffix`, which is then their name."""
    items: int = 10_000
    """Maximum number of windows, half of them with the suffix."""

    def __post_init__(self) -> None:
        """Refuse too few items."""
        if self.items // 2 < FEWEST_WINDOWS:
            raise Refusal(
                f"{self.items} items are too few: ask for `items` {2 * FEWEST_WINDOWS} or more"
            )


@dataclass(frozen=True)
class SubjoinerSettings(CorpusSettings):
    """Settings of the search for heads that gather the pieces of a word.

    Raises
    ------
    Refusal
        If a word has fewer than two pieces.
    """

    pieces: int = 4
    """Number of tokens of a word in pieces."""
    items: int = 1000
    """Maximum number of inputs of each class."""

    def __post_init__(self) -> None:
        """Refuse words that are not in pieces."""
        if self.pieces < 2:
            raise Refusal(f"a word in pieces has 2 or more, not {self.pieces}")
