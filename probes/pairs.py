"""Word-in-context pairs, from the published files, lines of JSON, or a data set on the hub."""

import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_dataset

from robustness.errors import Refusal
from robustness.text.hub import OPENING_ERRORS, hub_id, opening_refusal
from robustness.text.json_values import (
    brief,
    decode_line,
    is_text,
    numbered_lines,
    parse_values,
)
from robustness.text.local_file import expanded, file_kind, open_file, printable_name

PARTS = ("train", "dev", "test")
"""Names of the parts of a data set."""

HUB_PARTS = ("train", "validation")
"""Splits of SuperGLUE that have labels."""

FEWEST_PAIRS = 20
"""Minimum number of pairs in each part."""

MOST_PAIRS = 10**6
"""Maximum number of pairs in a part."""

LONGEST = 2**16
"""Maximum number of bytes in a line."""

LONGEST_WORD = 100
"""Maximum number of characters in a word."""


@dataclass(frozen=True)
class Pair:
    """A word in two sentences, and whether it means the same in both."""

    word: str
    """The word in its base form."""
    sentences: tuple[str, str]
    """The two sentences."""
    spans: tuple[tuple[int, int], tuple[int, int]]
    """Positions of the word's first character, and of the one after its last, in each sentence."""
    same: bool
    """Whether the word means the same in both."""


def read_pairs(source: str | Path) -> dict[str, list[Pair]]:
    """Read pairs by part: train, dev and test.

    Parameters
    ----------
    source : str or path
        `builtin`; a directory with `train.data.txt`, `train.gold.txt` and so on, as WiC is
        published, or with `train.jsonl`, `dev.jsonl` (or `val.jsonl`) and `test.jsonl`; or a data
        set on the hub with the fields of SuperGLUE, `owner/name:config`. Lines of a `.jsonl` file
        have the fields `word`, `sentence1`, `sentence2` and `label`, and may have `start1`, `end1`,
        `start2` and `end2`.

    Raises
    ------
    Refusal
        If there is no such source, or a line of it cannot be used; the line is named.
    """
    if source == "builtin":
        source = Path(str(files("robustness"))) / "builtin" / "texts" / "wic"
    directory = expanded(source)
    kind = file_kind(directory)
    if kind == stat.S_IFDIR:
        data_set = {part: _read_part(directory, part) for part in PARTS}
    elif kind is not None:
        raise Refusal(
            f"{printable_name(directory)} is no directory: name one with train, dev and test files "
            "in it"
        )
    elif isinstance(source, Path) or str(source).startswith((".", "/", "~")):
        raise Refusal(f"there is no directory {str(source)!a}: name one with pairs, or builtin")
    else:
        data_set = _read_hub(str(source))
    for part, pairs in data_set.items():
        if len(pairs) < FEWEST_PAIRS or len({pair.same for pair in pairs}) < 2:
            raise Refusal(
                f"{part} has {len(pairs)} pair(s); each part takes {FEWEST_PAIRS}, of both "
                "labels: add some"
            )
    return data_set


def _read_part(directory: Path, part: str) -> list[Pair]:
    """Read a part from a directory: the published files first, then lines of JSON."""
    data, gold = directory / f"{part}.data.txt", directory / f"{part}.gold.txt"
    if file_kind(data) is not None:
        if file_kind(gold) is None:
            raise Refusal(f"{printable_name(directory)} has {data.name} but no {gold.name}: add it")
        return _read_official(data, gold)
    path = directory / f"{part}.jsonl"
    # The part that others call dev is val in SuperGLUE.
    if part == "dev" and file_kind(path) is None and file_kind(directory / "val.jsonl") is not None:
        path = directory / "val.jsonl"
    if file_kind(path) is None:
        raise Refusal(f"{printable_name(directory)} has no {data.name} and no {path.name}: add one")
    pairs = []
    for at, line in _lines(path):
        where = f"{path.name}, line {at}"
        rows = parse_values(line, path.name, at)
        if len(rows) != 1:
            raise Refusal(f"{where}, holds {len(rows)} objects: write one a line")
        pairs.append(_from_row(rows[0], where))
    return pairs


def _read_official(data: Path, gold: Path) -> list[Pair]:
    """Read pairs from the two files of a part that WiC is published in."""
    labels = [line for _, line in _lines(gold)]
    lines_of_data = list(_lines(data))
    if len(lines_of_data) != len(labels):
        raise Refusal(
            f"{data.name} has {len(lines_of_data)} lines and {gold.name} has {len(labels)}: give "
            "each pair a label"
        )
    pairs = []
    for (at, line), label in zip(lines_of_data, labels, strict=True):
        pairs.append(_official(line, label, f"{data.name}, line {at}"))
    return pairs


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line."""
    # Divided at line feeds alone: `splitlines` divides at characters that sentences may hold.
    with open_file(path) as file:
        for number, _, line in numbered_lines(file, path.name, LONGEST):
            if number > MOST_PAIRS:
                raise Refusal(f"{path.name} has more than {MOST_PAIRS} pairs: take some of them")
            yield number, decode_line(line, path.name, number).removesuffix("\n").removesuffix("\r")


def _official(line: str, label: str, where: str) -> Pair:
    """Read a line of word, part of speech, index-index, sentence and sentence, divided by tabs."""
    fields = line.split("\t")
    if len(fields) != 5:
        raise Refusal(f"{where}: {len(fields)} fields instead of 5, divided by tabs: write all")
    word, _, indices, *sentences = fields
    if label not in {"T", "F"}:
        raise Refusal(f"{where}: the label is {brief(label)}, neither T nor F: write one")
    places = re.fullmatch(r"([0-9]{1,6})-([0-9]{1,6})", indices)
    if places is None:
        raise Refusal(f"{where}: {brief(indices)} is not two positions: write them as in 2-1")
    spans = []
    for sentence, place in zip(sentences, map(int, places.groups()), strict=True):
        words = list(re.finditer(r"\S+", sentence))
        if place >= len(words):
            raise Refusal(
                f"{where}: {brief(sentence)} has no word at position {place}; the first is 0"
            )
        first, last = words[place].span()
        # Without the punctuation around it.
        inner = re.search(r"\w(.*\w)?", words[place].group())
        spans.append((first + inner.start(), first + inner.end()) if inner else (first, last))
    return Pair(word, (sentences[0], sentences[1]), (spans[0], spans[1]), label == "T")


def _from_row(row: Mapping[str, Any], where: str) -> Pair:
    """Read a pair from an object with the fields of SuperGLUE."""
    for name in ("word", "sentence1", "sentence2", "label"):
        if not isinstance(row, Mapping) or name not in row:
            raise Refusal(f"{where}: there is no {name}; write an object with all fields")
        if name != "label" and not is_text(row[name]):
            raise Refusal(f"{where}: {name} is {brief(row[name])}, no text: write a text")
    if not 0 < len(row["word"]) <= LONGEST_WORD:
        raise Refusal(f"{where}: a word has 1 to {LONGEST_WORD} characters, not {len(row['word'])}")
    # True and False are 1 and 0 as keys.
    meanings = {"T": True, "F": False, 1: True, 0: False}
    label = meanings.get(row["label"]) if isinstance(row["label"], (str, int)) else None
    if label is None:
        raise Refusal(f"{where}: the label is {brief(row['label'])}, neither T nor F: write one")
    sentences = str(row["sentence1"]), str(row["sentence2"])
    spans = _span(row, "1", where), _span(row, "2", where)
    return Pair(str(row["word"]), sentences, spans, label)


def _span(row: Mapping[str, Any], side: str, where: str) -> tuple[int, int]:
    """Return the positions of the word in a sentence, as they are given or can be found."""
    sentence = row.get(f"sentence{side}")
    start, end = row.get(f"start{side}"), row.get(f"end{side}")
    if start is None or end is None:
        word = re.escape(row["word"])
        # The base form, an ending added, or an ending in the place of the last letter.
        forms = [rf"\b{word}\b"]
        if len(row["word"]) > 2:
            forms += [rf"\b{word}\w{{1,3}}\b", rf"\b{word[:-1]}\w{{1,4}}\b"]
        match = None
        for form in forms:
            match = match or re.search(form, str(sentence), re.IGNORECASE)
        if match is None:
            raise Refusal(
                f"{where}: {brief(row['word'])} is not in {brief(sentence)}; give start{side} and "
                f"end{side}"
            )
        start, end = match.span()
    if not _is_whole(start) or not _is_whole(end):
        raise Refusal(
            f"{where}: {brief(start)} and {brief(end)} are no positions of characters: write "
            "numbers"
        )
    if not 0 <= start < end <= len(str(sentence)):
        raise Refusal(
            f"{where}: {brief(sentence)} has no characters {brief(start)} to {brief(end)}: "
            "write the first and the one after the last"
        )
    return int(start), int(end)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_hub(source: str) -> dict[str, list[Pair]]:
    """SuperGLUE hides the labels of its test part: validation is test, a tenth of train is dev."""
    name, config = hub_id(source)
    try:
        rows = {part: list(load_dataset(name, config, split=part)) for part in HUB_PARTS}
    except OPENING_ERRORS as error:
        raise opening_refusal(source, error) from error
    pairs: dict[str, list[Pair]] = {}
    for part, of_part in rows.items():
        pairs[part] = [_from_row(row, f"{source}, {part} {at}") for at, row in enumerate(of_part)]
    # The labels of its test part are not published: validation is the test, and a tenth of train
    # is dev.
    order = np.random.default_rng(0).permutation(len(pairs["train"]))
    in_dev = set(order[: len(order) // 10].tolist())
    divided: dict[str, list[Pair]] = {"train": [], "dev": [], "test": pairs["validation"]}
    for at, pair in enumerate(pairs["train"]):
        divided["dev" if at in in_dev else "train"].append(pair)
    return divided
