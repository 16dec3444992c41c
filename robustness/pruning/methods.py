"""Methods of a search: from numbers that were measured to the next sets of units to measure.

A method yields one round for each number of removed units, 1, 2, 3, …, and does not know when the
search ends. What it asks to be measured is measured by the plan and the trace of a sweep.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil, comb
from typing import Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import Refusal
from robustness.pruning.parts import Parts
from robustness.pruning.quadratic import QuadraticModel, pairs_of
from robustness.pruning.racing import FEWEST_DOCUMENTS, Cut, Round
from robustness.pruning.settings import PruningSettings
from robustness.pruning.units import Unit

MOST_PAIRS = 2016
"""Maximum number of pairs that are measured where no method was asked for: those of 64 units."""

MOST_SETS = 20_000
"""Maximum number of sets of one size that the method exhaustive measures."""

SKETCH = 1 / 8
"""Share of the searched text on which single units and pairs are measured for the quadratic model,
and sets that nothing competes with."""


class Weigh(Protocol):
    """Measuring of candidates, as a method asks for it."""

    def __call__(
        self, candidates: Sequence[Cut], *, keep: int = 1, share: float | None = None
    ) -> Round:
        """Race candidates until `keep` are left, or measure all of them on a share of the text."""


@dataclass(frozen=True)
class Problem:
    """What a method is given."""

    units: tuple[Unit, ...]
    """Units that may be removed, in the order of execution."""
    settings: PruningSettings
    last: int
    """Number of units after which the search ends, if it is known, and otherwise of all that can be
    removed together."""
    weigh: Weigh
    observe: Callable[[], xr.Dataset]
    """Function that returns `block_influence` (layer, sequence) and `angular_distance` (layer,
    span, sequence) of the clean run on the searched text."""
    note: Callable[[Sequence[Cut], NDArray[np.float64]], object]
    """Function that keeps what the quadratic model predicts for candidates."""

    def sketch(self, candidates: Sequence[Cut]) -> Round:
        """Measure candidates on a share of the text."""
        return self.weigh(candidates, share=SKETCH)


Method = Callable[[Problem], Iterator[Round]]


def sketched(parts: Parts, batches: Sequence[slice], share: float) -> int:
    """Return the number of batches of a share of the searched text, with enough documents."""
    searched = sum(rows.stop <= parts.searched for rows in batches)
    wanted = ceil(share * searched)
    while wanted < searched:
        documents = parts.corpus.document[: batches[wanted - 1].stop]
        if np.unique(documents).size >= FEWEST_DOCUMENTS:
            break
        wanted += 1
    return wanted


def greedy(problem: Problem) -> Iterator[Round]:
    """Remove the unit that costs least, again and again (SLEB, Song et al. 2024, arXiv 2402.09025).

    With units of attention and MLP it is BlockPruner (Zhong et al. 2024, arXiv 2406.10594).
    """
    return _follow(problem, 1)


def beam(problem: Problem) -> Iterator[Round]:
    """Remove units one by one from several sets, of which the best are followed."""
    return _follow(problem, problem.settings.beam)


def _follow(problem: Problem, width: int) -> Iterator[Round]:
    kept: Sequence[Cut] = (frozenset(),)
    for _ in range(problem.last):
        extended: dict[Cut, None] = {}
        for cut in kept:
            for unit in problem.units:
                if unit not in cut:
                    extended[cut | {unit}] = None
        found = problem.weigh(list(extended), keep=width)
        kept = found.ranking[:width]
        yield found


def one_shot(problem: Problem) -> Iterator[Round]:
    """Remove the units that cost least when each is removed alone (as Shortened LLaMA does).

    Kim et al. 2024, arXiv 2402.02834.
    """
    singles = _singles(problem)
    found = problem.weigh(singles, share=1.0)
    yield found
    order = np.argsort(found.mean_of(singles), kind="stable")
    yield from _nested(problem, [problem.units[index] for index in order], 2)


def influence(problem: Problem) -> Iterator[Round]:
    """Remove the blocks with the lowest block influence (ShortGPT, Men et al. 2024).

    It is 1 less the mean cosine of a block's input and output, arXiv 2403.03853; no schedule is
    measured to choose them.
    """
    means = problem.observe()["block_influence"].mean("sequence", dtype="float64")
    of_units = means.sel(layer=list(problem.units)).values
    order = np.argsort(of_units, kind="stable")
    yield from _nested(problem, [problem.units[index] for index in order], 1)


def angular(problem: Problem) -> Iterator[Round]:
    """Remove the span of blocks whose ends have the smallest angle (UIDL, Gromov et al. 2024).

    The angle is that of the last token's residual streams, arXiv 2403.17887.
    """
    distances = problem.observe()["angular_distance"].mean("sequence", dtype="float64")
    for size in range(1, problem.last + 1):
        spans = _spans(problem.units, size)
        if not spans:
            return
        firsts = [min(span) for span in spans]  # type: ignore[type-var]
        of_spans = distances.sel(span=size).sel(layer=firsts).values
        yield problem.sketch([spans[int(np.argmin(of_spans))]])


def span(problem: Problem) -> Iterator[Round]:
    """Remove the contiguous span of blocks that costs least when it is removed."""
    for size in range(1, problem.last + 1):
        spans = _spans(problem.units, size)
        if not spans:
            return
        yield problem.weigh(spans)


def exhaustive(problem: Problem) -> Iterator[Round]:
    """Measure every set of each size."""
    for size in range(1, problem.last + 1):
        if comb(len(problem.units), size) > MOST_SETS:
            return
        yield problem.weigh([frozenset(cut) for cut in combinations(problem.units, size)])


def pairwise(problem: Problem) -> Iterator[Round]:
    """Measure single units and pairs, and then the best sets of their quadratic model.

    Single units and pairs are measured on a share of the text. Sets of one and of two units are
    then raced among the best of these, larger ones among the best of the model, `finalists` of them
    at the last step and half as many at those before.
    """
    units, singles = problem.units, _singles(problem)
    pairs = [frozenset(pair) for pair in combinations(units, 2)]
    of_singles = problem.sketch(singles)
    yield _final(problem, of_singles, problem.last == 1).after(of_singles)
    of_pairs = problem.sketch(pairs)
    yield _final(problem, of_pairs, problem.last == 2).after(of_pairs)
    costs = pairs_of(of_pairs.mean_of(pairs), len(units))
    model = QuadraticModel.of(of_singles.mean_of(singles), costs)
    for size in range(3, problem.last + 1):
        sets = model.best(size, _finalists(problem, size == problem.last))
        candidates = [frozenset(units[member] for member in row) for row in sets]
        problem.note(candidates, model.predict(sets))
        yield problem.weigh(candidates)


def _final(problem: Problem, sketched: Round, last: bool) -> Round:
    """Race those candidates that cost least on a share of the text."""
    return problem.weigh(sketched.ranking[: _finalists(problem, last)])


def _finalists(problem: Problem, last: bool) -> int:
    """Return how many sets are raced at a step."""
    most = problem.settings.finalists
    # Where the target is no number of units, any step may turn out to be the last.
    return most if last or not problem.settings.is_counted else max(1, most // 2)


def _singles(problem: Problem) -> list[Cut]:
    return [frozenset([unit]) for unit in problem.units]


def _spans(units: Sequence[Unit], size: int) -> list[Cut]:
    """Return all sets of blocks that follow each other in the model."""
    found: list[Cut] = []
    for first in range(len(units) - size + 1):
        blocks = units[first : first + size]
        if blocks[-1] - blocks[0] == size - 1:  # type: ignore[operator]
            found.append(frozenset(blocks))
    return found


def _nested(problem: Problem, order: Sequence[Unit], first: int) -> Iterator[Round]:
    """Yield the rounds of sets of the first units in an order, from a size on."""
    for size in range(first, problem.last + 1):
        yield problem.sketch([frozenset(order[:size])])


BY_NAME: dict[str, Method] = {
    "pairwise": pairwise,
    "greedy": greedy,
    "beam": beam,
    "one-shot": one_shot,
    "span": span,
    "influence": influence,
    "angular": angular,
    "exhaustive": exhaustive,
}
"""Methods by name."""


def check_sets(names: Sequence[str], units: Sequence[Unit], last: int) -> None:
    """Refuse methods that have no sets of a size, or too many.

    Raises
    ------
    Refusal
        If no so many blocks follow each other, or there are too many sets to measure all of them.
    """
    if {"span", "angular"} & set(names) and not _spans(units, last):
        raise Refusal(f"no {last} of the `layers` follow each other: name more of them")
    if "exhaustive" not in names:
        return
    for size in range(1, last + 1):
        count = comb(len(units), size)
        if count > MOST_SETS:
            raise Refusal(
                f"there are {count:,} sets of {size} units, and exhaustive measures {MOST_SETS:,} "
                "at most: take pairwise, or fewer `layers`"
            )


def chosen(settings: PruningSettings, units: int) -> tuple[str, ...]:
    """Return the names of the methods of a search over a number of units.

    >>> chosen(PruningSettings(remove=2), 12), chosen(PruningSettings(remove=2), 160)
    (('pairwise',), ('greedy',))
    """
    if settings.methods:
        return tuple(settings.methods)
    return ("pairwise",) if comb(units, 2) <= MOST_PAIRS else ("greedy",)
