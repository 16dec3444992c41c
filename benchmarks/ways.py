"""Plain ways of making a sweep, which ours is timed against, and the text that all of them read.

They make every number as ours does, but by full log-softmax of logits, and run every schedule from
the first block on, by a model whose list of blocks is changed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module, ModuleList

from robustness.schedules import Schedule
from robustness.text.corpus import Corpus

CONTEXT = 256

Forward = Callable[[Tensor], Tensor]
"""From tokens (sequence, token) to logits."""

Surgery = Callable[[Schedule], AbstractContextManager[object]]
"""Lets a model execute a schedule."""


def make_corpus(tokens: int, vocabulary: int, context: int = CONTEXT) -> Corpus:
    """Return random token ids, four documents for 1,024 tokens."""
    sequences = tokens // context
    ids = np.random.default_rng(0).integers(0, vocabulary, (sequences, context))
    return Corpus(
        tokens=ids,
        lengths=np.full(sequences, context),
        document=np.arange(sequences),
        name="random",
        rule="windows",
        bos="none",
        seed=0,
    )


@contextmanager
def in_order(model: Module, path: str, schedule: Schedule) -> Iterator[None]:
    """Let a model execute whole blocks in another order, by rebuilding its list of them."""
    owner, _, name = path.rpartition(".")
    parent = model.get_submodule(owner)
    blocks = getattr(parent, name)
    setattr(parent, name, ModuleList(blocks[step] for step in schedule))
    try:
        yield
    finally:
        setattr(parent, name, blocks)


def metrics(clean: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """KL, agreement, loss, entropy and accuracy per sequence, by full log-softmax."""
    changed = torch.log_softmax(logits.float(), -1)
    top = changed.argmax(-1)
    values = (
        (clean.exp() * (clean - changed)).sum(-1),
        (top == clean.argmax(-1)).float(),
        -changed.gather(-1, targets[..., None])[..., 0],
        -(changed.exp() * changed).sum(-1),
        (top == targets).float(),
    )
    return torch.stack([value.mean(-1) for value in values])


def _clean(forward: Forward, rows: Tensor) -> Tensor:
    return torch.log_softmax(forward(rows)[:, 1:-1].float(), -1)


def authors(forward: Forward, surgery: Surgery, tokens: Tensor, runs: Sequence[Schedule]) -> Tensor:
    """Compute the clean pass anew for every intervention, one document at a time."""
    found = []
    for schedule in runs:
        for row in tokens.split(1):
            clean = _clean(forward, row)
            with surgery(schedule):
                logits = forward(row)[:, 1:-1]
            found.append(metrics(clean, logits, row[:, 2:]))
    return torch.cat(found, -1).reshape(5, len(runs), len(tokens))


def loop(
    forward: Forward,
    surgery: Surgery,
    tokens: Tensor,
    runs: Sequence[Schedule],
    together: int | None = None,
) -> Tensor:
    """Compute one clean pass of `together` sequences at a time, then a pass for every schedule."""
    parts = []
    for rows in tokens.split(together or len(tokens)):
        clean, found = _clean(forward, rows), []
        for schedule in runs:
            with surgery(schedule):
                logits = forward(rows)[:, 1:-1]
            found.append(metrics(clean, logits, rows[:, 2:]))
        parts.append(torch.stack(found, 1))
    return torch.cat(parts, -1)
