"""Windows: sequences of equal length, cut from the tokens of documents."""

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from robustness.text.settings import SHORTEST_SEQUENCE


class WindowCutter:
    """Cuts the tokens of documents into windows, until there are enough.

    Parameters
    ----------
    bos : list of int
        Tokens that each window begins with.
    context : int
        Number of tokens in a window, `bos` included.
    wanted : int
        Number of windows that are enough.
    joint : list of int, optional
        Tokens by which documents are joined; without them, the tokens after a document's last
        window are dropped.

    Attributes
    ----------
    windows : list of int64 arrays of shape (token,)
        Windows so far.
    documents : array of int
        Index of the document that each window ends in.
    sizes : array of int
        Number of tokens of every document, and of the last one as far as it was read.
    """

    def __init__(
        self, bos: Sequence[int], context: int, wanted: int, joint: Sequence[int] | None
    ) -> None:
        self.windows: list[NDArray[np.int64]] = []
        self.documents = array("q")
        self.sizes = array("q")
        self._bos, self._joint = np.array(bos, dtype=np.int64), joint
        self._width, self._wanted = context - len(bos), wanted
        self._document = 0
        self._rest = self._bos[:0]

    @property
    def full(self) -> bool:
        """Whether there are enough windows."""
        return len(self.windows) >= self._wanted

    def begin(self, document: int) -> None:
        """Begin a document, given its index."""
        self._document = document
        self.sizes.append(0)

    def add(self, ids: NDArray[np.int64]) -> None:
        """Add further tokens of the document."""
        self.sizes[-1] += len(ids)
        self._cut(ids)

    def end(self) -> None:
        """End the document: join the next one to it, or drop the tokens after its last window."""
        if self._joint is None:
            self._rest = self._rest[:0]
        else:
            self._cut(np.array(self._joint, dtype=np.int64))

    def _cut(self, ids: NDArray[np.int64]) -> None:
        rest = np.concatenate([self._rest, ids])
        whole = len(rest) // self._width * self._width
        for start in range(0, whole, self._width):
            if self.full:
                break
            self.windows.append(np.concatenate([self._bos, rest[start : start + self._width]]))
            self.documents.append(self._document)
        self._rest = rest[whole:]

    def remedy(self, tokens: int, context: int) -> str:
        """Return the setting that would give `tokens` tokens, or the number that the text has.

        All documents must have been read and have given too few windows of `context` tokens.
        """
        shorter = self._sufficient_context(tokens, context)
        if shorter is not None:
            return f"`context` {shorter} would be enough"
        total = sum(self.sizes)
        if self._joint is None and total // max(1, self._width) * context >= tokens:
            return "`pack` would be enough"
        if self.windows:
            return f"ask for `tokens` {len(self.windows) * context}, or read a longer text"
        return f"all of it is {total} tokens long: read a longer text"

    def _sufficient_context(self, tokens: int, context: int) -> int | None:
        """Return the longest context below this one at which there are enough tokens."""
        lengths = np.array(self.sizes, dtype=np.int64)
        if self._joint is not None:
            # Joined documents are one, with a token more for each.
            lengths = np.array([lengths.sum() + len(lengths)])
        for shorter in range(context - 1, SHORTEST_SEQUENCE - 1, -1):
            windows = (lengths // (shorter - len(self._bos))).sum()
            if windows >= max(1, tokens // shorter):
                return shorter
        return None
