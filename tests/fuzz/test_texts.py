"""Texts, pairs and items of every odd kind, read through the command line.

Case `n` is made from the seed `n` alone, so that a failure is seen again by its name. The variable
STAGES_FUZZ of the environment says which share of the cases runs: 1 is all of them.
"""

import gzip
import json
import os
import random
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

CASES = 330
SHARE = float(os.environ.get("STAGES_FUZZ", "0.06"))
CHOSEN = range(0, CASES, max(1, round(1 / SHARE))) if SHARE > 0 else ()

LONGEST = 20
"""Seconds of the processor that a case may take."""

HANGING = 120
"""Seconds after which a case is taken to wait for ever, however busy the machine is."""

REMEDY = re.compile(
    r"\b(add|ask|choose|copy|divide|give|leave|make|name|read|run|save|see|set|take|unpack|write)\b"
    r"|must end|would be enough|takes|the first is"
)
"""What a message that says what would do has in it."""

ODD: list[Any] = [
    None, True, -1, 0, 1, 7, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", " ", "x",
    "T", "1", "\0", "\ud800", "\u2028", "\ufeff", "\x1b[31m", "é" * 99, "x" * 70_000, [], [None],
    ["a"], ["a", "b"], [0], {}, {"a": {"a": [1]}}, "2020-01-01", "{{1/0}}", "{% for %}", "$a$",
]  # fmt: skip
"""What a value is replaced by."""

NAMES = [
    "x?",
    "*",
    "[a-z]",
    "a::b",
    "zip:a",
    "-x",
    "a b",
    "é",
    "a\nb",
    "\x1b[31m",
    "%s",
    "{0}",
    "$x",
]
"""What files are called, besides bytes that are no text."""


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(["the", "cat", "ran", "to", "a", "house", "and", "sang"], k=12))


def rows(draw: random.Random) -> list[dict[str, Any]]:
    """Sound documents."""
    return [{"text": sentence(draw) * 3, "n": at} for at in range(draw.randint(1, 12))]


def pairs(draw: random.Random) -> list[dict[str, Any]]:
    """Sound pairs."""
    return [
        {
            "word": "cat",
            "sentence1": "the cat " + sentence(draw),
            "sentence2": "a cat",
            "label": label,
        }
        for label in ["T", "F"] * 12
    ]


def items(draw: random.Random) -> list[dict[str, Any]]:
    """Sound items of one of three forms."""
    forms: list[Callable[[], dict[str, Any]]] = [
        lambda: {"query": sentence(draw), "choices": ["a cat", "a house"], "gold": 1},
        lambda: {"context": sentence(draw), "continuation": "a house"},
        lambda: {
            "question": sentence(draw),
            "choices": {"text": ["a cat", "a house"], "label": ["A", "B"]},
            "answerKey": "B",
        },
    ]
    form = draw.choice(forms)
    return [form() for _ in range(draw.randint(1, 4))]


def upset_row(found: list[dict[str, Any]], draw: random.Random) -> list[Any]:
    """Change one of the rows, or all."""
    rows: list[Any] = list(found)
    for at in [draw.randrange(len(rows))] if draw.random() < 0.7 else range(len(rows)):
        row = dict(rows[at])
        field = draw.choice([*row, "more"])
        what = draw.randrange(6)
        if what == 0:
            row.pop(field, None)
        elif what == 1:
            rows[at] = draw.choice(ODD)
            continue
        elif what == 2 and isinstance(row.get(field), (dict, list)):
            inner = row[field]
            place = draw.choice(list(inner) if isinstance(inner, dict) else [*range(len(inner))])
            row[field] = {**inner} if isinstance(inner, dict) else [*inner]
            row[field][place] = draw.choice(ODD)
        else:
            row[field] = draw.choice(ODD)
        rows[at] = row
    return rows


def dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=is_escaped(value)).encode("utf-8", "surrogatepass")


def is_escaped(value: Any) -> bool:
    """Whether a row is written in ASCII, which is so of every other."""
    return len(repr(value)) % 2 == 0


def upset_bytes(content: bytes, draw: random.Random) -> bytes:
    """Damage the bytes of a file."""
    at = draw.randrange(len(content) + 1)
    deep = draw.choice([10, 500, 900, 5000, 100_000])
    changes: list[Callable[[], bytes]] = [
        lambda: content[:at],
        lambda: content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :],
        lambda: content[:at] + b"\0" * draw.choice([1, 5000]) + content[at:],
        lambda: content[:at] + b"\xff\xfe\xe9" + content[at:],
        lambda: b"\xef\xbb\xbf" + content,
        lambda: content.decode("utf-8", "replace").encode("utf-16"),
        lambda: content.replace(b"\n", draw.choice([b"\r\n", b"\r", b"", b" ", b"\n\n", b"\x0b"])),
        lambda: content.replace(b'{"', b'{"text": 1, "text": "x", "'),
        lambda: b"[" + content.strip().replace(b"\n", b",") + b"]",
        lambda: b"[" * deep + draw.choice([b"", b"]" * deep]),
        lambda: b'{"a":' * deep + b"1" + b"}" * deep,
        lambda: b'{"text": "x", "more": ' + b"[" * deep + b"]" * deep + b"}\n" + content,
        lambda: b'{"text": ' + b"9" * deep + b"}\n" + content,
        lambda: b'{"text": "' + b"ab cd " * 200_000 + b'"}\n' + content,
        lambda: b" " * 2_000_000 + content,
        lambda: b"\n" * 100_000 + content,
        lambda: draw.randbytes(draw.choice([1, 50, 5000])),
        lambda: b"",
        lambda: draw.choice([b"\n", b" ", b"null", b"1", b'"x"', b"{}", b"[]", b"[[]]", b"NaN"]),
        lambda: content * draw.choice([2, 50]),
        lambda: b"<|endoftext|>" * draw.choice([1, 1000]) + content,
    ]
    return draw.choice(changes)()


def parquet(found: list[dict[str, Any]], draw: random.Random) -> bytes:
    """Pack texts as a table, often of an odd type."""
    texts: list[Any] = [row["text"] for row in found]
    if draw.random() < 0.3:
        texts[draw.randrange(len(texts))] = None
    columns: list[Callable[[], Any]] = [
        lambda: pa.array(texts),
        lambda: pa.array(texts, pa.large_string()),
        lambda: pa.array(texts).dictionary_encode(),
        lambda: pa.array(texts, pa.binary()),
        lambda: pa.array([[text] for text in texts]),
        lambda: pa.array([{"a": text} for text in texts]),
        lambda: pa.array(range(len(texts))),
        lambda: pa.array([None] * len(texts)),
        lambda: pa.array([b"\xff\xe9"] * len(texts), pa.binary()).view(pa.string()),
    ]
    table = pa.table({draw.choice(["text", "text", "text", "body"]): draw.choice(columns)()})
    out = pa.BufferOutputStream()
    pq.write_table(table[: draw.choice([0, 1, 99, 99, 99])], out, draw.choice([1, 1000]))
    return out.getvalue().to_pybytes()


def gzipped(content: bytes, draw: random.Random) -> bytes:
    """Pack bytes, often with damage."""
    packed = gzip.compress(content, mtime=0)
    at = draw.randrange(len(packed))
    flipped = packed[:at] + bytes([packed[at] ^ (1 << draw.randrange(8))]) + packed[at + 1 :]
    return draw.choice([packed, packed, packed[:at], flipped, packed + packed, packed + b"x", b""])


def content(path: Path, draw: random.Random, sound: list[dict[str, Any]]) -> bytes:
    """Make what is in a file, of its ending."""
    kinds = path.name.split(".")
    if "parquet" in kinds:
        found = parquet(sound, draw)
        if draw.random() < 0.5:
            found = upset_bytes(found, draw)
    else:
        rows = upset_row(sound, draw) if draw.random() < 0.6 else sound
        if "txt" in kinds:
            texts = [
                str(row["text"]) if isinstance(row, dict) and "text" in row else "" for row in rows
            ]
            found = "<|endoftext|>".join(texts).encode("utf-8", "surrogatepass")
        else:
            found = b"".join(dumped(row) + b"\n" for row in rows)
        if draw.random() < 0.6:
            found = upset_bytes(found, draw)
    return gzipped(found, draw) if "gz" in kinds else found


def put(path: Path, draw: random.Random, sound: list[dict[str, Any]]) -> None:
    """Put something at a path: mostly a file, seldom what is none."""
    what = draw.choices(["file", "pipe", "directory", "device", "loop", "nothing", "socket"],
                        weights=[40, 1, 1, 1, 1, 1, 1])[0]  # fmt: skip
    if what == "pipe":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    elif what == "device":
        path.symlink_to(draw.choice(["/dev/zero", "/dev/null", "/dev/tty", "/dev/random"]))
    elif what == "loop":
        path.symlink_to(path.name)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as held:
            try:
                held.bind(str(path))
            except (OSError, UnicodeEncodeError):
                path.mkdir()
    elif what == "file":
        path.write_bytes(content(path, draw, sound))


def name_of(draw: random.Random) -> str:
    if draw.random() < 0.1:
        return os.fsdecode(b"caf\xe9")
    return draw.choice(NAMES) if draw.random() < 0.4 else "x"


def a_text(place: Path, draw: random.Random) -> list[str]:
    """Words that read a corpus."""
    ending = draw.choice(
        [".jsonl", ".txt", ".json", ".parquet", ".jsonl.gz", ".txt.gz", ".parquet.gz"]
    )
    path = place / f"{name_of(draw)}{ending}"
    put(path, draw, rows(draw))
    source = draw.choice([str(path), path.name, f"./{path.name}"])
    ways = [
        ["sweep", "MODEL", "--drop", "--context", "12", "--tokens", "24"],
        ["sweep", "MODEL", "--drop", "--context", "12", "--pack"],
        ["sweep", "MODEL", "--drop", "--context", "12", "--paper-compat", "--documents", "2"],
        ["sweep", "MODEL", "--drop", "--context", "12", "--field", draw.choice(["n", "body", ""])],
        ["observe", "MODEL", "lens", "--context", "12", "--seed", "3"],
        ["probe", "MODEL", "ing", "--suffix", "a"],
        ["probe", "MODEL", "subjoiner", "--pieces", "2"],
    ]  # fmt: skip
    weights = [4, 2, 2, 1, 1, 1, 1]
    return [*draw.choices(ways, weights)[0], f"--data={source}"]


def some_pairs(place: Path, draw: random.Random) -> list[str]:
    """Words that read word-in-context pairs."""
    directory = place / name_of(draw)
    directory.mkdir()
    official = draw.random() < 0.5
    bad = draw.choice(["train", "dev", "test"])
    for part in ("train", "dev", "test"):
        found = pairs(draw)
        if not official:
            path = directory / f"{part}.jsonl"
            if part == bad:
                put(path, draw, found)
            else:
                path.write_bytes(b"".join(dumped(row) + b"\n" for row in found))
            continue
        lines = [f"cat\tN\t1-1\t{row['sentence1']}\t{row['sentence2']}" for row in found]
        labels = [row["label"] for row in found]
        if part == bad and draw.random() < 0.5:
            at = draw.randrange(len(lines))
            fields: list[str] = lines[at].split("\t")
            fields[draw.randrange(5)] = draw.choice(
                ["", "9-9", "1-" + "9" * 5000, "\0", "²-1", "x y"]
            )
            lines[at] = "\t".join(fields)
        content = "\n".join(lines).encode() + b"\n"
        marks = "\n".join(labels).encode() + b"\n"
        if part == bad:
            content = upset_bytes(content, draw) if draw.random() < 0.4 else content
            marks = upset_bytes(marks, draw) if draw.random() < 0.3 else marks
        (directory / f"{part}.data.txt").write_bytes(content)
        (directory / f"{part}.gold.txt").write_bytes(marks)
    return ["probe", "MODEL", "wic", f"--data={draw.choice([directory, './' + directory.name])}"]


def some_items(place: Path, draw: random.Random) -> list[str]:
    """Words that read items of a task."""
    directory = place / name_of(draw)
    directory.mkdir()
    task = draw.choice(["arc_easy", "hellaswag", "lambada_openai"])
    put(directory / f"{task}.jsonl", draw, items(draw))
    return ["tasks", "MODEL", task, "--drop", "--limit", "3", f"--task-data={directory}"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", CHOSEN)
def test_what_is_read_is_used_or_refused_in_a_line(seed, run, llama, tmp_path, monkeypatch):
    draw = random.Random(seed)
    place = tmp_path / "place"
    place.mkdir()
    words = draw.choices([a_text, some_pairs, some_items], [7, 2, 2])[0](place, draw)
    monkeypatch.chdir(place)
    words = [str(llama) if word == "MODEL" else word for word in words]
    out = tmp_path / "out" if words[0] == "observe" else tmp_path / "out.nc"

    def stop(*_: object) -> None:
        pytest.fail(f"{words} waits for ever")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANGING)
    began = process_time()
    try:
        status, _, err = run(*words, "--quiet", "--out", str(out))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert process_time() - began < LONGEST, words
    assert status in {0, 1, 2}, err
    assert "Traceback" not in err and "a fault of" not in err and "\x1b" not in err, err
    if status == 1:
        assert err.startswith("stages: ") and err.count("\n") == 1, err
        assert REMEDY.search(err), err
    assert status == 1 or out.exists() or status == 2
