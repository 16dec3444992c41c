"""Word-in-context pairs, read from the published files, lines of JSON, or a data set of the hub."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_dataset

from robustness.refusal import Refusal, first_line

PARTS = ("train", "dev", "test")

FEWEST = 20
"""Pairs that each part must have."""


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
