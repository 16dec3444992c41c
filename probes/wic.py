"""Word in context: whether a word means the same in two sentences.

The task is that of Pilehvar and Camacho-Collados (2019). A word is represented by the mean of the
residual stream over its tokens, each sentence run alone.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from datasets import load_dataset
from numpy.typing import NDArray
from torch import Tensor

from probes.classifier import Floats, Probe, Split, fit_all, labelled, threshold
from robustness import kernels, results
from robustness.corpus import source_name
from robustness.metrics import Metric
from robustness.model import Model
from robustness.observation import scan
from robustness.refusal import Refusal, first_line

PARTS = ("train", "dev", "test")
PROBES = ("pair", "concatenation", "threshold", "shuffled")
"""What is done with the two representations g and h of a word.

`pair`: a probe on |g - h| and g ⊙ h. `concatenation`: one on both after each other, which cannot
say whether two things are the same, as it only adds. `threshold`: their cosine, standardised, above
a threshold chosen on dev (Liu et al. 2024). `shuffled`: `pair` with labels in random order, a
control."""

GRID = tuple(np.arange(0, 1, 0.05).round(2).tolist())
"""Thresholds of the cosine that are tried."""

FEWEST = 20
"""Pairs that each part must have."""

MOST_UNALIGNED = 0.05
"""Largest share of pairs that may be left out because their word's tokens were not found."""


@dataclass(frozen=True)
class Pair:
    """A word in two sentences, and whether it means the same."""

    word: str
    sentences: tuple[str, str]
    spans: tuple[tuple[int, int], tuple[int, int]]
    """Of the word in each sentence, the first character and the one after the last."""
    same: bool


def read(source: str | Path) -> dict[str, list[Pair]]:
    """Read pairs by part: train, dev and test.

    Parameters
    ----------
    source : str or path
        `builtin`; a directory with `train.data.txt` and `train.gold.txt` and so on, as WiC is
        published, or with `train.jsonl`, `dev.jsonl` (or `val.jsonl`) and `test.jsonl`; or a data
        set of the hub in the manner of SuperGLUE, `owner/name:config`. Lines of a `.jsonl` file
        have `word`, `sentence1`, `sentence2`, `label`, and may have `start1`, `end1`, `start2`,
        `end2`.

    Raises
    ------
    Refusal
        If there is no such source, or a line of it cannot be used; the line is named.
    """
    if source == "builtin":
        source = Path(str(files("robustness"))) / "builtin" / "texts" / "wic"
    directory = Path(source).expanduser()
    if directory.is_dir():
        found = {part: _read_part(directory, part) for part in PARTS}
    elif isinstance(source, Path) or str(source).startswith((".", "/", "~")):
        raise Refusal(f"there is no directory {source}")
    else:
        found = _read_hub(str(source))
    for part, pairs in found.items():
        if len(pairs) < FEWEST or len({pair.same for pair in pairs}) < 2:
            raise Refusal(
                f"{part} has {len(pairs)} pair(s); each part takes {FEWEST}, of both labels"
            )
    return found


def _read_part(directory: Path, part: str) -> list[Pair]:
    data, gold = directory / f"{part}.data.txt", directory / f"{part}.gold.txt"
    if data.is_file():
        if not gold.is_file():
            raise Refusal(f"{directory.name} has {data.name} but no {gold.name}")
        lines, labels = _lines(data), _lines(gold)
        if len(lines) != len(labels):
            raise Refusal(f"{data.name} has {len(lines)} lines and {gold.name} has {len(labels)}")
        rows = enumerate(zip(lines, labels, strict=True), 1)
        return [_official(line, label, f"{data.name}, line {at}") for at, (line, label) in rows]
    names = [f"{part}.jsonl", *(["val.jsonl"] if part == "dev" else [])]
    path = next((directory / name for name in names if (directory / name).is_file()), None)
    if path is None:
        raise Refusal(f"{directory.name} has no {data.name} and no {names[0]}")
    pairs = []
    for at, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise Refusal(f"{path.name}, line {at}, is not JSON: {first_line(error)}") from error
        pairs.append(_from_row(row, f"{path.name}, line {at}"))
    return pairs


def _lines(path: Path) -> list[str]:
    try:
        # Not `splitlines`, to which characters that may stand in a sentence end a line too.
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{path.name} cannot be read: {first_line(error)}") from error


def _official(line: str, label: str, where: str) -> Pair:
    """Read a line of word, part of speech, index-index, sentence, sentence, divided by tabs."""
    fields = line.split("\t")
    if len(fields) != 5:
        raise Refusal(f"{where}: {len(fields)} fields instead of 5, divided by tabs")
    word, _, indices, *sentences = fields
    if label not in {"T", "F"}:
        raise Refusal(f"{where}: the label is {label!r}, neither T nor F")
    places = re.fullmatch(r"(\d+)-(\d+)", indices)
    if places is None:
        raise Refusal(f"{where}: {indices!r} is not two positions as in 2-1")
    spans = []
    for sentence, place in zip(sentences, map(int, places.groups()), strict=True):
        words = list(re.finditer(r"\S+", sentence))
        if place >= len(words):
            raise Refusal(f"{where}: {sentence!r} has no word at position {place}")
        first, last = words[place].span()
        inner = re.search(r"\w(.*\w)?", words[place].group())
        spans.append((first + inner.start(), first + inner.end()) if inner else (first, last))
    return Pair(word, (sentences[0], sentences[1]), (spans[0], spans[1]), label == "T")


def _from_row(row: Mapping[str, Any], where: str) -> Pair:
    for name in ("word", "sentence1", "sentence2", "label"):
        if not isinstance(row, Mapping) or name not in row:
            raise Refusal(f"{where}: there is no {name}")
        if name != "label" and not isinstance(row[name], str):
            raise Refusal(f"{where}: {name} is {row[name]!r}, no text")
    known = {"T": True, "F": False, 1: True, 0: False}
    label = known.get(row["label"]) if isinstance(row["label"], (str, int)) else None
    if label is None:
        raise Refusal(f"{where}: the label is {row['label']!r}, neither T nor F")
    spans = []
    for side in "12":
        sentence, start, end = (row.get(f"{name}{side}") for name in ("sentence", "start", "end"))
        if start is None or end is None:
            word = re.escape(row["word"])
            forms = [rf"\b{word}\b"]
            if len(row["word"]) > 2:
                forms += [rf"\b{word}\w{{1,3}}\b", rf"\b{word[:-1]}\w{{1,4}}\b"]
            tried = (re.search(form, str(sentence), re.IGNORECASE) for form in forms)
            match = next((each for each in tried if each is not None), None)
            if match is None:
                raise Refusal(f"{where}: {row['word']!r} is not in {sentence!r}")
            start, end = match.span()
        if not (isinstance(start, int) and isinstance(end, int)):
            raise Refusal(f"{where}: {start!r} and {end!r} are no positions of characters")
        if not 0 <= start < end <= len(str(sentence)):
            raise Refusal(f"{where}: {sentence!r} has no characters {start} to {end}")
        spans.append((int(start), int(end)))
    sentences = str(row["sentence1"]), str(row["sentence2"])
    return Pair(str(row["word"]), sentences, (spans[0], spans[1]), label)


def _read_hub(source: str) -> dict[str, list[Pair]]:
    """SuperGLUE hides the labels of its test part: validation is test, a tenth of train is dev."""
    name, _, config = source.partition(":")
    try:
        rows = {
            part: list(load_dataset(name, config or None, split=part))
            for part in ("train", "validation")
        }
    except (OSError, ValueError, RuntimeError) as error:
        raise Refusal(
            f"there is no directory and no data set {source!r}: {first_line(error)}"
        ) from error
    pairs = {
        part: [_from_row(row, f"{source}, {part} {at}") for at, row in enumerate(found)]
        for part, found in rows.items()
    }
    order = np.random.default_rng(0).permutation(len(pairs["train"]))
    dev = set(order[: len(order) // 10].tolist())
    return {
        "train": [pair for at, pair in enumerate(pairs["train"]) if at not in dev],
        "dev": [pair for at, pair in enumerate(pairs["train"]) if at in dev],
        "test": pairs["validation"],
    }


def align(
    sentence: str, span: tuple[int, int], tokenizer: Any, most: int | None
) -> tuple[list[int], NDArray[np.float32]] | None:
    """Return a sentence's tokens, BOS first, and which of them are of the word.

    A token is of the word if it covers one of its characters. None if no token is, or the sentence
    is longer than the model takes.
    """
    encoded = tokenizer(sentence, add_special_tokens=False, return_offsets_mapping=True)
    bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    ids = [*bos, *encoded["input_ids"]]
    of_word = [start < span[1] and end > span[0] for start, end in encoded["offset_mapping"]]
    mask = np.array([False] * len(bos) + of_word, dtype=np.float32)
    return None if not mask.any() or (most is not None and len(ids) > most) else (ids, mask)


def mean_of_word(captured: dict[str, Any], text: dict[str, Any]) -> dict[str, Tensor]:
    """Mean of the residual stream over a word's tokens, (width, item)."""
    mask = text["word"][..., None]
    states = kernels.precise(captured["residual"])
    return {"state": ((states * mask).sum(1) / mask.sum(1)).T}


def probe_wic(
    model: Model,
    source: str | Path = "builtin",
    *,
    seed: int = 0,
    batch_tokens: int | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    command: str = "",
    progress: Callable[[int, int], object] | None = None,
) -> xr.Dataset:
    """Probe at every depth whether a word means the same in two sentences.

    Parameters
    ----------
    model : Model
        An opened model, whose tokenizer has offsets.
    source : str or path
        As `read` takes it.
    seed : int
        Of the shuffled labels and the bootstrap.
    batch_tokens : int, optional
        Tokens in a trace.
    out : str or path, optional
        The file; captured states are kept beside it until they are probed.
    fresh : bool
        Whether to throw away what is there.
    command : str
        The command line, for the record.
    progress : callable, optional
        Told how many sentences are done, and how many there are.

    Returns
    -------
    Dataset
        `correct` (probe, depth, item), of the test items; `accuracy`, `accuracy_low`,
        `accuracy_high`, a 95 % bootstrap interval, `dev_accuracy` and `chosen` (probe, depth). The
        attributes say how many pairs of each part were aligned, and how many there were.

    Raises
    ------
    Refusal
        If the source cannot be used, the tokenizer has no offsets, or more than a few pairs are not
        aligned.
    """
    tokenizer = model.tokenizer
    if tokenizer is None or not tokenizer.is_fast:
        raise Refusal(f"the tokenizer of {model.name} has no offsets, to find a word's tokens by")
    pairs = [(part, pair) for part, found in read(source).items() for pair in found]
    aligned = _align_all(pairs, tokenizer, model.context)
    kept = [at for at, sides in enumerate(aligned) if sides is not None]
    if len(kept) < (1 - MOST_UNALIGNED) * len(pairs):
        raise Refusal(
            f"in {len(pairs) - len(kept)} of {len(pairs)} pairs the word's tokens were not found, "
            "or the sentence is longer than the model takes"
        )
    sides = [side for at in kept for side in aligned[at] or ()]
    order = np.argsort([len(ids) for ids, _ in sides], kind="stable")
    parts = np.array([pairs[at][0] for at in kept])
    counts = {
        f"{part}_pairs": f"{(parts == part).sum()} of {sum(name == part for name, _ in pairs)}"
        for part in PARTS
    }
    settings = {
        **model.identity,
        **counts,
        "measurement": "wic",
        "corpus": source_name(source),
        "corpus_sha256": results.digest(
            [(ids, mask.tolist()) for ids, mask in sides]
            + [(pairs[at][0], pairs[at][1].same) for at in kept]
        ),
        "seed": seed,
        "sequences": len(sides),
    }
    state = Metric("state", "1", "mean residual stream over a word's tokens")
    coords = {
        "depth": np.arange(model.layers + 1),
        "feature": np.arange(model.width),
        "sentence": order,
    }
    run = results.Run(
        results.blank(
            {"state": (state, ("depth", "feature", "sentence"))},
            coords,
            results.provenance(settings, command),
        ),
        path=None if out is None else Path(out),
        fresh=fresh,
        complete=lambda dataset, _: _probe_all(dataset, parts, [pairs[at][1] for at in kept], seed),
    )
    with run:
        ordered = [sides[at] for at in order]
        if progress is not None:
            progress(run.done, len(ordered))
        for rows, found in scan(
            model,
            [ids for ids, _ in ordered],
            mean_of_word,
            final=True,
            details={"word": [mask for _, mask in ordered]},
            begin=run.done,
            batch_tokens=batch_tokens,
        ):
            run.add(rows, {"state": found["state"].numpy()})
            if progress is not None:
                progress(run.done, len(ordered))
        return run.finish()


def _align_all(
    pairs: Sequence[tuple[str, Pair]], tokenizer: Any, most: int | None
) -> list[list[tuple[list[int], NDArray[np.float32]]] | None]:
    found: list[list[tuple[list[int], NDArray[np.float32]]] | None] = []
    for _, pair in pairs:
        sides = [
            align(sentence, span, tokenizer, most)
            for sentence, span in zip(pair.sentences, pair.spans, strict=True)
        ]
        there = [side for side in sides if side is not None]
        found.append(there if len(there) == len(sides) else None)
    return found


def _probe_all(
    dataset: xr.Dataset, parts: NDArray[Any], pairs: Sequence[Pair], seed: int
) -> xr.Dataset:
    """Fit every method at every depth on the captured states."""
    states = dataset["state"].values[..., np.argsort(dataset["sentence"].values)]
    same = np.array([pair.same for pair in pairs])
    depths = states.shape[0]
    probes: dict[str, list[Probe]] = {method: [] for method in PROBES}
    makers = {
        "pair": _pair_features,
        "concatenation": lambda g, h: np.concatenate([g, h], 1),
        "shuffled": _pair_features,
    }
    for method, make in makers.items():

        def split(depth: int, method: str = method, make: Any = make) -> Split:
            found = _split(make(*_sides(states[depth])), same, parts)
            return found.shuffled(seed + depth) if method == "shuffled" else found

        jobs = [lambda depth=depth, split=split: split(depth) for depth in range(depths)]
        probes[method] = fit_all(jobs)
    for depth in range(depths):
        cosines = _standardised_cosine(*_sides(states[depth]), parts)
        probes["threshold"].append(threshold(_split(cosines[:, None], same, parts), GRID))
    chosen = [pair for pair, part in zip(pairs, parts, strict=True) if part == "test"]
    found = [labelled(probes[name], "depth", np.arange(len(chosen)), seed) for name in PROBES]
    return (
        xr.concat(found, "probe")
        .assign_coords(
            probe=list(PROBES),
            depth=dataset["depth"],
            item=np.arange(len(chosen)),
            word=("item", [pair.word for pair in chosen]),
            same=("item", [int(pair.same) for pair in chosen]),
        )
        .assign_attrs(dataset.attrs)
    )


def _sides(states: Floats) -> tuple[Floats, Floats]:
    """Return the representations of a word in both sentences, (pair, feature) each."""
    return states[:, 0::2].T, states[:, 1::2].T


def _pair_features(g: Floats, h: Floats) -> Floats:
    return np.concatenate([np.abs(g - h), g * h], 1)


def _standardised_cosine(g: Floats, h: Floats, parts: NDArray[Any]) -> Floats:
    train = np.concatenate([side[parts == "train"] for side in (g, h)])
    mean, deviation = train.mean(0), train.std(0) + 1e-12
    g, h = (g - mean) / deviation, (h - mean) / deviation
    norms = np.linalg.norm(g, axis=1) * np.linalg.norm(h, axis=1)
    cosine: Floats = (g * h).sum(1) / np.maximum(norms, 1e-12)
    return cosine


def _split(features: Floats, labels: NDArray[np.bool_], parts: NDArray[Any]) -> Split:
    train, dev, test = ((features[parts == part], labels[parts == part]) for part in PARTS)
    return Split(train, dev, test)
