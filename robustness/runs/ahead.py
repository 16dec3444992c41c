"""Tokens of batches on the device that runs them, those of the next batch moved ahead."""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustness.models.model import Model
from robustness.text.corpus import Corpus


class TokensAhead:
    """Tokens of batches on a device: with those of a batch, the next ones are sent on their way.

    They are sent before anything of the batch is computed, so that no batch waits for its tokens.

    Parameters
    ----------
    model : Model
        An opened model.
    corpus : Corpus
        Token sequences.
    batches : sequence of slice
        Sequences of every batch, in the order in which they run.
    """

    def __init__(self, model: Model, corpus: Corpus, batches: Sequence[slice]) -> None:
        self._model, self._corpus = model, corpus
        self._next = dict(zip(_bounds(batches), batches[1:]))
        self._sent: tuple[tuple[int, int], Tensor] | None = None

    def take(self, rows: slice) -> Tensor:
        """Return the tokens of some sequences, int64 (sequence, token), and send the next batch."""
        place = (rows.start, rows.stop)
        if self._sent is not None and self._sent[0] == place:
            tokens = self._sent[1]
        else:
            tokens = tokens_of(self._model, self._corpus, rows)
        following, self._sent = self._next.get(place), None
        if following is not None:
            sent = tokens_of(self._model, self._corpus, following)
            self._sent = (following.start, following.stop), sent
        return tokens


def tokens_of(model: Model, corpus: Corpus, rows: slice) -> Tensor:
    """Return the tokens of some sequences on the model's device, int64 (sequence, token)."""
    width = corpus.lengths[rows].max()
    tokens = torch.from_numpy(corpus.tokens[rows, :width])
    if model.device.type != "cuda":
        return tokens.to(model.device)
    # Only what the system cannot move elsewhere is copied while the host goes on.
    return tokens.pin_memory().to(model.device, non_blocking=True)


def _bounds(batches: Sequence[slice]) -> list[tuple[int, int]]:
    return [(rows.start, rows.stop) for rows in batches[:-1]]
