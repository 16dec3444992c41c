"""Methods of layer pruning as published code has them: a plain model is rebuilt for every set."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from families import rebuilt
from oracles.plain import cosines, run

Set = tuple[Any, ...]
"""Removed units, in the order of execution."""


class Costs:
    """KL and rise of loss of a plain model that lacks units, as means over sequences."""

    def __init__(
        self,
        net: Any,
        units: Sequence[Any],
        without: Callable[[Set], tuple[Any, ...]],
        tokens: torch.Tensor,
        objective: str,
    ) -> None:
        self.net, self.units, self.tokens = net, units, tokens
        self.without, self.objective = without, objective
        self.clean, self.known = self._log_softmax(net), dict[Set, float]()

    def _log_softmax(self, net: Any) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(net(self.tokens, use_cache=False).logits, -1)

    def __call__(self, removed: Sequence[Any]) -> float:
        removed = tuple(sorted(removed, key=self.units.index))
        if removed not in self.known:
            p, q = self.clean, self._log_softmax(rebuilt(self.net, self.without(removed)))
            if self.objective == "kl":
                self.known[removed] = (p.exp() * (p - q)).sum(-1)[:, 1:-1].mean().item()
            else:
                following = self.tokens[:, 2:, None]
                rise = (p - q)[:, 1:-1].gather(-1, following)
                self.known[removed] = rise.mean().item()
        return self.known[removed]

    def best(self, sets: Sequence[Set]) -> Set:
        return tuple(sorted(min(sets, key=self), key=self.units.index))


def greedy(costs: Costs, last: int) -> Iterator[Set]:
    removed: Set = ()
    for _ in range(last):
        left = [unit for unit in costs.units if unit not in removed]
        removed = (*removed, min(left, key=lambda unit: costs((*removed, unit))))
        yield removed


def beam(costs: Costs, last: int, width: int) -> Iterator[Set]:
    kept: list[frozenset[Any]] = [frozenset()]
    for _ in range(last):
        longer = {cut | {unit} for cut in kept for unit in costs.units if unit not in cut}
        kept = sorted(longer, key=lambda cut: costs(tuple(cut)))[:width]
        yield tuple(kept[0])


def one_shot(costs: Costs, last: int) -> Iterator[Set]:
    order = sorted(costs.units, key=lambda unit: costs((unit,)))
    for size in range(1, last + 1):
        yield tuple(order[:size])


def span(costs: Costs, last: int) -> Iterator[Set]:
    for size in range(1, last + 1):
        starts = range(len(costs.units) - size + 1)
        yield costs.best([tuple(costs.units[at : at + size]) for at in starts])


def exhaustive(costs: Costs, last: int) -> Iterator[Set]:
    for size in range(1, last + 1):
        yield costs.best(list(combinations(costs.units, size)))


def pairwise(costs: Costs, last: int, finalists: int) -> Iterator[Set]:
    """With `finalists` sets at the last step and half as many before."""

    def predicted(removed: Set) -> float:
        if len(removed) < 3:
            return costs(removed)
        singles = sum(costs((unit,)) for unit in removed)
        return singles + sum(
            costs((a, b)) - costs((a,)) - costs((b,)) for a, b in combinations(removed, 2)
        )

    for size in range(1, last + 1):
        count = finalists if size == last else max(1, finalists // 2)
        sets = sorted(combinations(costs.units, size), key=predicted)
        yield costs.best(sets[:count])


def influence(costs: Costs, last: int) -> Iterator[Set]:
    seen = run(costs.net, costs.tokens)
    means = []
    for before, after in zip(seen["in"], seen["out"], strict=True):
        means.append(1 - cosines(before, after)[:, 1:-1].mean())
    for size in range(1, last + 1):
        yield tuple(np.argsort(means)[:size].tolist())


def angular(costs: Costs, last: int) -> Iterator[Set]:
    seen = run(costs.net, costs.tokens)
    states = [*seen["in"], seen["final"][0]]
    for size in range(1, last + 1):
        angles = []
        for low in range(len(states) - size):
            cosine = cosines(states[low], states[low + size])[:, -1]
            angles.append(np.arccos(cosine).mean())
        first = int(np.argmin(angles))
        yield tuple(range(first, first + size))
