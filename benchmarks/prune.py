"""Measures what searches for a smaller model find, and what they cost, beside measuring all sets.

For every number of blocks to remove, all sets of so many blocks are measured once. Every method
then searches on the same text and takes its numbers from there. The table has the rank of what it
has chosen among all sets, by their KL on the searched part, and the KL on the held-out part. Races
are repeated with the documents in other orders, as other seeds would have them, on the numbers that
are there. Block applications of a greedy search are counted beside those of a loop that runs every
candidate from the first block on.

    python benchmarks/prune.py builtin builtin-parallel --kept DIRECTORY
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, islice
from math import comb
from pathlib import Path

import numpy as np
import scipy
import xarray as xr
from numpy.typing import NDArray

from robustness.files import netcdf
from robustness.files.kinds.searches import NOT_WEIGHED
from robustness.models import open_model
from robustness.models.model import Model
from robustness.pruning.measuring import READ_NAMES, Measurer
from robustness.pruning.methods import BY_NAME, Problem, sketched
from robustness.pruning.parts import Parts, divide
from robustness.pruning.quadratic import QuadraticModel, pairs_of
from robustness.pruning.racing import Cut, Round, race
from robustness.pruning.scores import held_out
from robustness.pruning.search import prune
from robustness.pruning.settings import METHODS, PruningSettings
from robustness.pruning.units import names, without
from robustness.runs.settings import RunOptions
from robustness.schedules import check, to_text
from robustness.statistics.uncertainty import band
from robustness.sweeps import sweep
from robustness.text import cut
from robustness.text.corpus import Corpus

HOLDOUT = 0.25

STATED = 4
"""Number of removed blocks that the bounds below are stated for."""

LEAST_CORRELATION = 0.97
"""Smallest rank correlation of the quadratic model with the KL of all sets."""

FEWEST_SAME = 0.95
"""Share of repetitions that must choose what the whole text chooses, or one not told from it."""

MANY = 48
"""Number of documents from which on races are bound to spare tokens."""

MOST_READ = 1 / 3
"""Mean share of the tokens that a race may read."""

MOST_APPLIED = 0.55
"""Share of a loop's block applications that candidates may take in shared prefixes."""


class Measured:
    """KL of every set of some numbers of blocks of a model on a text."""

    def __init__(self, model: Model, corpus: Corpus, kept: Path, name: str) -> None:
        self.model, self.corpus, self.kept, self.name = model, corpus, kept, name
        self.parts = divide([corpus], HOLDOUT)

    def file(self, size: int) -> Path:
        """Return the file with all sets of a size, measured if it is not there yet."""
        path = self.kept / f"{self.name}-{self.corpus.tokens.size}-{size}.nc"
        if not path.exists():
            layers = self.model.layers
            sets = combinations(range(layers), size)
            schedules = [without(layers, frozenset(removed)) for removed in sets]
            sweep(self.model, self.corpus, schedules=schedules, readouts=READ_NAMES, out=path)
        return path

    def search_file(self, size: int) -> Path:
        """Return the file of the search by every method."""
        return self.kept / f"search-{self.name}-{self.corpus.tokens.size}-{size}.nc"

    def kl(self, size: int) -> dict[Cut, NDArray[np.float64]]:
        """Return the KL (sequence,) without each set of a size."""
        found = netcdf.load(self.file(size))
        values = dict(zip(map(str, found["schedule"].values), found["kl"].values, strict=True))
        layers = self.model.layers
        by_cut = {}
        for removed in combinations(range(layers), size):
            chosen = frozenset(removed)
            by_cut[chosen] = values[to_text(without(layers, chosen))].astype(np.float64)
        return by_cut

    def searched_means(self, size: int) -> dict[Cut, float]:
        """Return the mean KL of each set of a size on the searched part."""
        end = self.parts.searched
        return {removed: float(kl[:end].mean()) for removed, kl in self.kl(size).items()}


def side_by_side(measured: Measured, size: int, methods: Sequence[str]) -> xr.Dataset:
    """Search by every method, and print a row for each, behind one for all sets."""
    files = tuple(measured.file(each) for each in sorted({1, 2, size}))
    settings = PruningSettings(remove=size, methods=methods, holdout=HOLDOUT, measured=files)
    options = RunOptions(out=measured.search_file(size), fresh=True)
    found = prune(measured.model, [measured.corpus], settings, options)
    means = measured.searched_means(size)
    order = sorted(means, key=lambda removed: means[removed])
    layers = measured.model.layers
    places = {to_text(without(layers, removed)): at for at, removed in enumerate(order)}
    print(f"\n### {measured.name}, {size} of {layers} blocks\n")
    print("| method | removed | held-out KL | rank | schedules | tokens | applications |")
    print("|---|---|---|--:|--:|--:|--:|")
    tokens = len(order) * int(measured.corpus.lengths[: measured.parts.searched].sum())
    measurer = Measurer(measured.model, measured.corpus, RunOptions())
    schedules = [without(layers, removed) for removed in order]
    applied = measurer.applications(schedules, slice(0, 1)) * measured.parts.searched
    best = xr.DataArray(
        measured.kl(size)[order[0]],
        dims="sequence",
        coords={name: found[name] for name in ("document", "part")},
    )
    cells = (names(order[0]), _interval(held_out(best)), 1, len(order), tokens, applied)
    print(_row("all sets", *cells))
    for method in methods:
        of_method = found.sel(strategy=method)
        chosen = str(of_method["chosen"].values[-1])
        candidate = found.sel(candidate=chosen)
        weighed = int((of_method["standing"] > NOT_WEIGHED).any("step").sum())
        costs = [int(of_method[name].sum()) for name in ("tokens_read", "applications")]
        kl = _interval(held_out(candidate["kl"]))
        rank = places[chosen] + 1
        print(_row(method, str(candidate["removed"].values), kl, rank, weighed, *costs))
    return found


def _row(method: str, removed: str, kl: str, rank: int, *counts: int) -> str:
    shown = " | ".join(f"{count:,}" for count in counts)
    return f"| {method} | {removed} | {kl} | {rank} | {shown} |"


def _interval(kl: xr.DataArray) -> str:
    low, high = band(kl).values
    return f"{float(kl.mean()):.3f} ({low:.3f} to {high:.3f})"


def quadratic(measured: Measured, size: int) -> float:
    """Return the rank correlation of the quadratic model with the KL of all sets of a size."""
    layers = measured.model.layers
    singles = np.array(list(measured.searched_means(1).values()))
    pairs = pairs_of(np.array(list(measured.searched_means(2).values())), layers)
    sets = measured.searched_means(size)
    predicted = QuadraticModel.of(singles, pairs).predict(np.array([sorted(cut) for cut in sets]))
    return float(scipy.stats.spearmanr(predicted, list(sets.values())).statistic)


class Replay:
    """Races on numbers that are measured already, with the documents in another order."""

    def __init__(
        self,
        kl: dict[Cut, NDArray[np.float64]],
        parts: Parts,
        batch_tokens: int,
        level: float | None,
    ) -> None:
        # Without a level there is no race: all candidates are measured on all of the part.
        self.kl, self.parts, self.level = kl, parts, level
        self.batches, _ = parts.batches(batch_tokens)
        self.read = self.in_full = 0
        self._counted = set[tuple[int, Cut]]()

    def weigh(
        self, candidates: Sequence[Cut], *, keep: int = 1, share: float | None = None
    ) -> Round:
        """Race candidates, as a search does."""
        count, documents = len(self.batches), self.parts.corpus.document
        batches = (
            count if share is None or not self.level else sketched(self.parts, self.batches, share)
        )
        rows = {cut: at for at, cut in enumerate(candidates)}
        values = np.stack([self.kl[cut][: self.parts.searched] for cut in candidates])
        finish = race(
            candidates,
            batches,
            lambda alive, at: values[[rows[cut] for cut in alive], : self.batches[at].stop],
            lambda at: documents[: self.batches[at].stop],
            keep if share is None and self.level else None,
            self.level or PruningSettings.level,
        )
        width = self.parts.corpus.context
        self.in_full += sum((0, cut) not in self._counted for cut in candidates) * (
            width * self.parts.searched
        )
        for at, alive in enumerate(finish.measured):
            counted = {(at, cut) for cut in alive} - self._counted
            self._counted |= counted
            self.read += len(counted) * width * (self.batches[at].stop - self.batches[at].start)
        standing = tuple(1 for _ in candidates)
        ranking, means = tuple(finish.ranking), tuple(finish.means)
        return Round(tuple(candidates), standing, ranking, means, 0, 0, 0)


def replay(measured: Measured, method: str, size: int, repetitions: int, level: float) -> str:
    """Repeat a search with other orders of the documents, and return a row of what came out."""
    corpus, units = measured.corpus, tuple(range(measured.model.layers))
    kl = {}
    for each in range(1, size + 1) if method != "exhaustive" else [size]:
        kl |= measured.kl(each)
    batch_tokens = Measurer(measured.model, corpus, RunOptions()).batch_tokens
    settings = PruningSettings(remove=size, methods=[method])
    equal = alike = 0
    shares = []
    for seed in range(repetitions):
        rows = _order(corpus.document, seed)
        parts = divide([_rows(corpus, rows)], HOLDOUT)
        turned = {removed: values[rows] for removed, values in kl.items()}
        chosen = []
        for at_level in (level, None):
            run = Replay(turned, parts, batch_tokens, at_level)
            problem = Problem(units, settings, size, run.weigh, lambda: None, lambda *_: None)
            if method == "exhaustive":
                found = run.weigh(list(turned))
            else:
                *_, found = islice(BY_NAME[method](problem), size)
            chosen.append(found.best)
            if at_level:
                shares.append(run.read / run.in_full)
        equal += chosen[0] == chosen[1]
        alike += _alike(*(turned[cut][: parts.searched] for cut in chosen), parts)
    share = np.array(shares)
    if size == STATED and np.unique(corpus.document).size >= MANY:
        assert alike >= FEWEST_SAME * repetitions and share.mean() <= MOST_READ
    return (
        f"| {measured.name} | {method} | {size} | {equal} | {alike} | {share.mean():.3f} | "
        f"{share.max():.3f} |"
    )


def _alike(one: NDArray[np.float64], other: NDArray[np.float64], parts: Parts) -> bool:
    """Whether the interval of the difference of two sets on the searched part holds 0."""
    documents = parts.corpus.document[: parts.searched]
    difference = xr.DataArray(
        one - other, dims="sequence", coords={"document": ("sequence", documents)}
    )
    low, high = band(difference).values
    return bool(low <= 0 <= high)


def _order(documents: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the rows of a text whose documents are in the order of a seed."""
    order = np.random.default_rng(seed).permutation(np.unique(documents))
    return np.concatenate([np.flatnonzero(documents == document) for document in order])


def _rows(corpus: Corpus, rows: NDArray[np.int64]) -> Corpus:
    return replace(
        corpus,
        tokens=corpus.tokens[rows],
        lengths=corpus.lengths[rows],
        document=corpus.document[rows],
    )


def against_a_loop(measured: Measured, size: int) -> None:
    """Print the block applications of a greedy search, and those of plain loops.

    A plain loop runs every candidate from the first block on, and the clean model too, on all of
    the searched part. What sharing prefixes saves of it is counted on the candidates of all rounds,
    with the clean run and without it; what races save besides is counted in the search.
    """
    layers, sequences = measured.model.layers, measured.parts.searched
    found = netcdf.load(measured.search_file(size)).sel(strategy="greedy")
    measurer = Measurer(measured.model, measured.corpus, RunOptions())
    shared, loop = 0, 0
    for step in range(size):
        weighed = found["standing"].isel(step=step) > NOT_WEIGHED
        candidates = found["candidate"].values[weighed.values]
        schedules = [check(str(text), layers) for text in candidates]
        shared += measurer.applications(schedules, slice(0, 1)) - layers
        loop += sum(map(len, schedules))
    clean = size * layers
    searched = int(found["applications"].sum())
    whole = (loop + clean) * sequences
    without_clean, with_clean = shared / loop, (shared + clean) / (loop + clean)
    print(
        f"| {measured.name} | {size} | {whole:,} | {without_clean:.3f} | {with_clean:.3f} | "
        f"{searched:,} | {searched / whole:.3f} |"
    )
    assert size != STATED or without_clean <= MOST_APPLIED


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["builtin", "builtin-parallel"])
    parser.add_argument("--text", default="builtin")
    parser.add_argument("--tokens", type=int, default=26_368)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 6])
    parser.add_argument("--kept", type=Path, required=True, help="Where measured numbers are kept.")
    parser.add_argument("--races", type=int, default=0, help="Size of the sets that are raced.")
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--level", type=float, default=PruningSettings.level)
    options = parser.parse_args()
    options.kept.mkdir(parents=True, exist_ok=True)
    methods = [name for name in METHODS if name != "exhaustive"]
    texts = []
    for name in options.models:
        model = open_model(name)
        corpus = cut(options.text, model.tokenizer, context=options.context, tokens=options.tokens)
        texts.append(Measured(model, corpus, options.kept, Path(name).name))
    for measured in texts:
        for size in options.sizes:
            if comb(measured.model.layers, size) > 1:
                side_by_side(measured, size, methods)
    print("\n| model | blocks | rank correlation of the quadratic model |\n|---|--:|--:|")
    for measured in texts:
        for size in options.sizes:
            if 2 < size < measured.model.layers:
                correlation = quadratic(measured, size)
                print(f"| {measured.name} | {size} | {correlation:.3f} |")
                # Of five blocks there are five sets of four.
                few = comb(measured.model.layers, size) < 100
                assert size != STATED or few or correlation >= LEAST_CORRELATION
    print("\n| model | blocks | loop | sharing | with the clean run | search | search / loop |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for measured in texts:
        for size in options.sizes:
            if 2 < size < measured.model.layers:
                against_a_loop(measured, size)
    if options.races:
        print("\n| model | method | blocks | same set | not told apart | mean share | largest |")
        print("|---|---|--:|--:|--:|--:|--:|")
        for measured in texts:
            for method in ("exhaustive", "greedy", "beam", "pairwise", "span"):
                print(
                    replay(measured, method, options.races, options.repetitions, options.level),
                    flush=True,
                )


if __name__ == "__main__":
    main()
