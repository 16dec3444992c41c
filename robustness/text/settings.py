"""Settings of the text that is read: its source, and how it is cut into sequences."""

from dataclasses import dataclass
from pathlib import Path

from robustness.errors import Refusal

SHORTEST_SEQUENCE = 3
"""Minimum number of tokens in a sequence, whose first and last positions no metric includes."""

DEFAULT_CONTEXT = 256
"""Default number of tokens in a sequence, where the model takes as many."""

PAPER_CONTEXT = 2048
"""Default maximum number of tokens in a sequence with `paper_compat`, as in the paper."""

PAPER_DOCUMENTS = 1388
"""Number of documents that the paper's authors read."""


@dataclass(frozen=True)
class TextSettings:
    """Settings of the text: its source, and how it is cut into sequences.

    Raises
    ------
    Refusal
        If settings contradict each other, or the context is too short.
    """

    source: str | Path = "builtin"
    """Built-in text (`builtin`, `builtin-sampled`), path of a `.txt`, `.jsonl` or `.parquet` file
    (also `.gz`), or data set of the Hugging Face hub, `owner/name` or `owner/name:config`."""

    field: str = "text"
    """Name of the column that holds the text; a `.txt` file has none."""

    split: str = "train"
    """Split of a data set of the hub."""

    tokens: int | None = None
    """Number of tokens to read, rounded down to whole sequences; the source must hold them all.
    Without it, at most 100,000 of what the source holds."""

    context: int | None = None
    """Number of tokens in a sequence, BOS included; by default 256, or the model's limit where that
    is lower. With `paper_compat`, the largest number, by default 2048 or the model's limit."""

    pack: bool = False
    """Whether documents are joined, instead of dropping the tokens after each one's last window."""

    seed: int = 0
    """Seed of the order of the documents."""

    paper_compat: bool = False
    """Whether the first documents are read, one a sequence, with the authors' token alignment."""

    documents: int | None = None
    """Number of documents that `paper_compat` takes; by default 1388."""

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        if self.context is not None and self.context < SHORTEST_SEQUENCE:
            raise Refusal(
                f"a context of {self.context} is too short: it takes at least {SHORTEST_SEQUENCE} "
                "tokens"
            )
        if not self.paper_compat:
            if self.documents is not None:
                raise Refusal("`documents` goes with `paper_compat`")
            return
        others = {"tokens": self.tokens, "pack": self.pack, "seed": self.seed}
        ignored = [f"`{name}`" for name, value in others.items() if value]
        if ignored:
            raise Refusal(f"`paper_compat` goes without {', '.join(ignored)}")
