"""What is named is what is read: local text, by its name, as it stands, and whole or refused."""

import gzip
import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers_for_tests import byte_tokenizer

from robustness.errors import Refusal
from robustness.files.netcdf import load
from robustness.text import encoding, formats, local_file
from robustness.text.corpus import cut, first_documents
from robustness.text.local_text import open_documents
from robustness.text.sources import documents, open_source

TOKENIZER = byte_tokenizer()
ROOT = Path(__file__).parents[1]


def lines_of(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.fixture
def no_library(monkeypatch):
    """Make the data sets' library, which keeps a cache, fail whenever it reads something."""

    def fail(*words, **_):
        raise AssertionError(f"load_dataset{words}")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr("robustness.text.hub.load_dataset", fail)


def test_another_text_under_the_same_name_and_time_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    found = []
    for text in ("one", "two"):
        path.write_bytes(lines_of([text] * 4))
        os.utime(path, ns=(10**18, 10**18))
        found.append([read for _, read in documents(path)])
    assert found == [["one"] * 4, ["two"] * 4]


@pytest.mark.parametrize(
    "name",
    [
        "x?.jsonl",
        "*.jsonl",
        "[a-z]x.jsonl",
        "x::y.jsonl",
        "zip:x.jsonl",
        "{x,y}.jsonl",
        "ü x.jsonl",
    ],
)
def test_a_name_is_never_a_pattern(tmp_path, monkeypatch, no_library, name):
    monkeypatch.chdir(tmp_path)
    Path("xx.jsonl").write_bytes(lines_of(["wrong"] * 9))
    Path("xy.jsonl").write_bytes(lines_of(["wrong"] * 9))
    Path(name).write_bytes(lines_of(["right"]))
    assert list(documents(name)) == [(0, "right")]
    assert list(documents(tmp_path / name)) == [(0, "right")]


@pytest.mark.parametrize("name", ["json", "text:x", "parquet", "here/there:x", "here/there:y*"])
def test_what_is_on_this_machine_is_no_data_set_of_the_hub(tmp_path, monkeypatch, no_library, name):
    monkeypatch.chdir(tmp_path)
    Path("here/there").mkdir(parents=True)
    Path("here/there/train.jsonl").write_bytes(lines_of(["wrong"]))
    Path("train.jsonl").write_bytes(lines_of(["wrong"]))
    with pytest.raises(Refusal, match="no data set of the hub"):
        list(documents(name))


@pytest.mark.slow
@given(
    texts=st.lists(st.text(max_size=30), min_size=1, max_size=12),
    seed=st.one_of(st.none(), st.integers(0, 9)),
    kind=st.sampled_from(["lines", "lines.gz", "list", "parquet", "spread", "crlf"]),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_documents_come_whole_with_their_indices_in_the_seeded_order(tmp_path, texts, seed, kind):
    """The order and the indices are those of a shuffled range, of the texts by any other reader."""
    path = tmp_path / {"list": "a.json", "parquet": "a.parquet", "lines.gz": "a.jsonl.gz"}.get(
        kind, "a.jsonl"
    )
    if kind == "parquet":
        pq.write_table(pa.table({"text": texts, "n": list(range(len(texts)))}), path, 3)
    elif kind == "list":
        path.write_text(json.dumps([{"text": text} for text in texts], indent=1))
    elif kind == "spread":
        path.write_text("\n".join(json.dumps({"text": text}, indent=2) for text in texts))
    else:
        content = lines_of(texts).replace(b"\n", b"\r\n" if kind == "crlf" else b"\n")
        path.write_bytes(gzip.compress(content) if kind == "lines.gz" else content)
    order = np.arange(len(texts))
    if seed is not None:
        np.random.default_rng(seed).shuffle(order)
    assert list(documents(path, seed=seed)) == [(int(at), texts[at]) for at in order]


@given(
    parts=st.lists(st.text(alphabet="ab \n\r\u3000é<|endoftx>", max_size=9), max_size=12),
    block=st.integers(14, 40),
)
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_text_file_is_divided_as_if_it_had_been_read_whole(tmp_path, parts, block):
    path = tmp_path / "a.txt"
    path.write_bytes("<|endoftext|>".join(parts).encode() or b" ")
    whole = path.read_text(encoding="utf-8").split("<|endoftext|>")
    expected = [piece for piece in whole if piece.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "BLOCK_BYTES", block)
        if not expected:
            with pytest.raises(Refusal, match="holds no text"):
                list(documents(path))
            return
        assert list(documents(path)) == list(enumerate(expected))


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.txt.gz", "a.parquet"])
def test_the_hash_is_of_the_bytes_that_are_read(tmp_path, name):
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.table({"text": ["one", "two"]}), path)
    else:
        content = lines_of(["one", "two"])
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    expected = hashlib.sha256(path.read_bytes() + b"text").hexdigest()
    with open_source(path) as text:
        assert text.sha256 == expected
        # Another file in its place is not what was opened.
        other = tmp_path / "other"
        other.write_bytes(b"something else")
        other.replace(path)
        assert len(list(text.documents())) in (1, 2)
    assert text.sha256 == expected


def test_a_file_that_is_written_to_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(["one", "two", "three"]))
    found = documents(path)
    assert next(found) == (0, "one")
    path.write_bytes(lines_of(["one", "TWO", "three"]))
    with pytest.raises(Refusal, match=r"a\.jsonl was changed while it was read"):
        list(found)


def deep(depth):
    return b'{"text": "x", "other": ' + b"[" * depth + b"]" * depth + b"}\n"


def parquet(table, **options):
    out = pa.BufferOutputStream()
    pq.write_table(table, out, **options)
    return out.getvalue().to_pybytes()


WHOLE = parquet(pa.table({"text": ["one", "two"] * 50}))

BAD = {
    "nested 100,000 deep": ("a.jsonl", deep(100_000), "nested too deeply"),
    "a list nested 100,000 deep": ("a.json", b"[" * 100_000, "nested too deeply"),
    "an empty gzip": ("a.jsonl.gz", b"", "is empty"),
    "a gzip of nothing": ("a.jsonl.gz", gzip.compress(b""), "holds no text"),
    "a gzip cut off": ("a.txt.gz", gzip.compress(b"text" * 99)[:-9], "damaged or cut off"),
    "a gzip with something behind": ("a.txt.gz", gzip.compress(b"text") + b"x", "damaged or cut"),
    "a gzip with a wrong sum": ("a.txt.gz", gzip.compress(b"text")[:-8] + b"\0" * 8, "damaged"),
    "no gzip": ("a.txt.gz", b"text", "damaged or cut off"),
    "NUL in JSON": ("a.jsonl", b'{"text": "a\0b"}', "Invalid control character"),
    "NUL alone": ("a.jsonl", b"\0" * 99, "cannot be read as json"),
    "half a pair": ("a.jsonl", b'{"text": "\\ud800"}', "half of a surrogate pair"),
    "a name twice": ("a.jsonl", b'{"text": "a", "text": "b"}', "'text' is there twice"),
    "a list in line 2": ("a.jsonl", b'{"text": "a"}\n["b"]', "row 2 is a list"),
    "a number": ("a.jsonl", b'{"text": 3}', "has a number for text"),
    "a number of many digits": ("a.jsonl", b'{"text": ' + b"9" * 9999 + b"}", "line 1"),
    "no field": ("a.jsonl", b'{"body": "a"}\n{}', "its fields are: body"),
    "UTF-16": ("a.jsonl", lines_of(["a"]).decode().encode("utf-16"), "save it as UTF-8"),
    "Latin-1 in line 2": ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', r"UTF-8 text \(line 2"),
    "a parquet without rows": (
        "a.parquet",
        parquet(pa.table({"text": pa.array([], pa.string())})),
        "no text",
    ),
    "a parquet cut off": ("a.parquet", WHOLE[:-20], "cannot be read as parquet"),
    "a parquet without its middle": (
        "a.parquet",
        WHOLE[:8] + b"\xff" * 60 + WHOLE[68:],
        "a.parquet",
    ),
    "a parquet of numbers": (
        "a.parquet",
        parquet(pa.table({"text": [1, 2]})),
        "has int64 for text",
    ),
    "a parquet of lists": (
        "a.parquet",
        parquet(pa.table({"text": [["a"]]})),
        "for text in its field",
    ),
    "a parquet of bytes": ("a.parquet", parquet(pa.table({"text": [b"a"]})), "has binary for text"),
    "a parquet with null": (
        "a.parquet",
        parquet(pa.table({"text": ["a", None]})),
        "document 1 .* None",
    ),
    "a parquet of another field": ("a.parquet", parquet(pa.table({"n": [1]})), "its fields are: n"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(tmp_path, case):
    name, content, problem = BAD[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(Refusal, match=problem) as refused:
        list(documents(path))
    assert "\n" not in str(refused.value) and name in str(refused.value)


ODD = {
    "a mark in front": ("a.jsonl", b"\xef\xbb\xbf" + lines_of(["a", "b"])),
    "line ends of Windows": ("a.jsonl", lines_of(["a", "b"]).replace(b"\n", b"\r\n")),
    "two objects a line": ("a.jsonl", lines_of(["a", "b"]).replace(b"\n", b"")),
    "other fields of other kinds": (
        "a.jsonl",
        b'{"text": "a", "n": [1]}\n{"n": {"b": NaN}, "text": "b", "d": "2020-01-01"}\n',
    ),
    "nested 500 deep beside it": ("a.jsonl", deep(500).replace(b'"x"', b'"a"') + lines_of(["b"])),
    "a long number beside it": (
        "a.jsonl",
        b'{"text": "a", "n": 1' + b"0" * 99 + b'}\n{"text": "b"}',
    ),
    "a list of texts": ("a.json", b'["a", "b"]'),
    "a packed parquet": ("a.parquet.gz", gzip.compress(parquet(pa.table({"text": ["a", "b"]})))),
    "a dictionary": (
        "a.parquet",
        parquet(pa.table({"text": pa.array(["a", "b"]).dictionary_encode()})),
    ),
    "long strings": (
        "a.parquet",
        parquet(pa.table({"text": pa.array(["a", "b"], pa.large_string())})),
    ),
    "groups of one row": ("a.parquet", parquet(pa.table({"text": ["a", "b"]}), row_group_size=1)),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_file_that_holds_text_is_read(tmp_path, case):
    name, content = ODD[case]
    (tmp_path / name).write_bytes(content)
    assert list(documents(tmp_path / name)) == [(0, "a"), (1, "b")]


def test_a_text_that_looks_like_a_date_is_a_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines_of(["2020-01-01", "2021-01-01"]))
    assert [text for _, text in documents(tmp_path / "a.jsonl")] == ["2020-01-01", "2021-01-01"]


def test_what_is_no_file_is_refused_at_once(tmp_path, no_library):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "device.txt").symlink_to("/dev/zero")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "nowhere.txt").symlink_to("none")
    (tmp_path / "round.txt").symlink_to("round.txt")
    held = socket.socket(socket.AF_UNIX)
    held.bind(str(tmp_path / "socket.txt"))
    with held:
        for name, what in {
            "pipe.jsonl": "is a pipe",
            "device.txt": "is a device",
            "folder.jsonl": "is a directory",
            "socket.txt": "is a socket",
            "nowhere.txt": "there is no file",
            "round.txt": "cannot be looked at",
            "a" * 300 + ".txt": "cannot be looked at",
            "nul\0.txt": "there is no file",
        }.items():
            with pytest.raises(Refusal, match=what):
                list(documents(tmp_path / name))
            with pytest.raises(Refusal, match=what):
                list(documents(str(tmp_path / name)))
    with pytest.raises(Refusal, match="there is no file"):
        list(documents("~nobody-of-this-name/x.txt"))


def test_names_that_are_no_text_are_shown_escaped(tmp_path):
    path = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9\x1b[31m.jsonl"))
    path.write_bytes(b"{")
    with pytest.raises(Refusal, match=r"^caf\\udce9\\x1b\[31m\.jsonl cannot be read as json"):
        list(documents(path))
    path.write_bytes(lines_of(["abc" * 20]))
    found = cut(str(path), TOKENIZER, context=10)
    assert found.name == "caf\\udce9\\x1b[31m.jsonl"
    found.name.encode()


@pytest.mark.slow
def test_a_run_on_a_file_whose_name_is_no_text_is_saved(run, llama, tmp_path):
    path = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.jsonl"))
    path.write_bytes(lines_of(["abc" * 20] * 3))
    words = ("sweep", llama, "--drop", "--context", 12, "--quiet", "--out", "out.nc")
    for data in (path, path.name):
        assert run(*words, "--fresh", "--data", data)[0] == 0
        assert load(tmp_path / "out.nc").attrs["corpus"] == "caf\\udce9.jsonl"
        assert "caf\\udce9.jsonl" in load(tmp_path / "out.nc").attrs["command"]


def test_far_more_than_text_unpacks_to_is_refused_before_it_fills_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(local_file, "UNPACKED_ANYWAY", 2**22)
    path = tmp_path / "bomb.txt.gz"
    path.write_bytes(gzip.compress(bytes(2**24)))
    with pytest.raises(Refusal, match=r"bomb\.txt\.gz unpacks to more than 4 MiB"):
        list(documents(path))
    many = pa.array(["x" * 2**16]).dictionary_encode()
    table = pa.table(
        {"text": pa.DictionaryArray.from_arrays(np.zeros(2**10, np.int32), many.dictionary)}
    )
    pq.write_table(table, tmp_path / "bomb.parquet")
    with pytest.raises(Refusal, match=r"bomb\.parquet unpacks to more than"):
        list(documents(tmp_path / "bomb.parquet"))


def test_a_full_disk_is_named_where_something_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(local_file, "UNPACKED_IN_MEMORY", 1)
    monkeypatch.setenv("TMPDIR", "/dev/null")
    monkeypatch.setattr("tempfile.tempdir", "/proc")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"text" * 9))
    with pytest.raises(Refusal, match="set TMPDIR"):
        list(documents(tmp_path / "a.txt.gz"))


def test_a_line_is_bounded_and_one_that_is_too_long_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "LONGEST_JSON", 100)
    (tmp_path / "a.jsonl").write_bytes(lines_of(["x" * 200]))
    with pytest.raises(Refusal, match="line 1, is longer"):
        list(documents(tmp_path / "a.jsonl"))


def test_the_tail_of_a_document_that_is_not_needed_is_not_read(tmp_path, monkeypatch):
    read = []
    path = tmp_path / "a.txt"
    path.write_bytes(b"The cat sat on the mat. " * 200_000)
    chunks = formats.PlainText.chunks

    def spy(self, index):
        for chunk in chunks(self, index):
            read.append(len(chunk))
            yield chunk

    monkeypatch.setattr(encoding, "LONGEST_WHOLE", 2**14)
    monkeypatch.setattr(encoding, "PIECE_SIZE", 2**14)
    monkeypatch.setattr(encoding, "OVERLAPS", (2**12,))
    monkeypatch.setattr(formats, "BLOCK_BYTES", 2**13)
    with open_documents(path) as found:
        assert len(found) == 1
        monkeypatch.setattr(formats.PlainText, "chunks", spy)
        corpus = cut(path, TOKENIZER, context=100, tokens=2000)
    assert corpus.tokens.shape == (20, 100)
    assert sum(read) < 2**17, "the first character of it, to see that it is not blank, and its head"
    first = first_documents(path, TOKENIZER, context=100, count=1)
    np.testing.assert_array_equal(first.tokens[0], corpus.tokens[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_memory_is_that_of_what_is_read_at_once(tmp_path, name):
    """Of a document of 48 MB, of whose tokens the library alone takes gigabytes."""
    path = tmp_path / name
    content = b"The cat sat on the mat. " * 2_000_000
    path.write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    program = f"""
import resource, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from tokenizers_for_tests import byte_tokenizer
from robustness.text.corpus import cut
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
cut({str(path)!r}, byte_tokenizer(), context=100, tokens=2000)
print(peak() - before)
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(found.stdout) < 350_000, "KiB more than before"
