import gzip
import json
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers_for_tests import byte_tokenizer

from robustness.errors import Refusal
from robustness.text import corpus as corpora
from robustness.text import hub
from robustness.text.corpus import cut, first_documents
from robustness.text.sources import documents

TOKENIZER = byte_tokenizer()


def write(path: Path, texts: list[str]) -> Path:
    rows = [{"text": text, "n": index} for index, text in enumerate(texts)]
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    elif path.suffix == ".txt":
        path.write_text("<|endoftext|>".join(texts))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.txt"])
def test_every_format_yields_the_same_documents(tmp_path, name):
    texts = ["one two", "three", "vier fünf"]
    assert list(documents(write(tmp_path / name, texts))) == list(enumerate(texts))


def test_the_order_of_documents_depends_on_the_seed_alone(tmp_path):
    path = write(tmp_path / "a.jsonl", [f"text {i}" for i in range(50)])
    orders = {seed: tuple(documents(path, seed=seed)) for seed in range(3)}
    assert orders[1] == tuple(documents(path, seed=1))
    assert len(set(orders.values())) == 3
    assert {tuple(sorted(order)) for order in orders.values()} == {tuple(documents(path))}


@pytest.mark.slow
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=8),
    st.integers(4, 20),
    st.booleans(),
    st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_windows_hold_what_the_documents_say(monkeypatch, sizes, context, bos, pack):
    texts = [chr(97 + index) * size for index, size in enumerate(sizes)]
    found = SimpleNamespace(
        name="x",
        sha256="",
        documents=lambda _: ((at, iter([text])) for at, text in enumerate(texts)),
    )
    monkeypatch.setattr(corpora, "open_source", lambda *_, **__: nullcontext(found))
    tokenizer = byte_tokenizer(bos=bos)
    width = context - bos
    joined = ["".join(text + ("|" if bos else "") for text in texts)] if pack else texts
    expected = [
        text[start : start + width]
        for text in joined
        for start in range(0, len(text) - width + 1, width)
    ]
    if not expected:
        with pytest.raises(Refusal, match="asked for"):
            cut("x", tokenizer, context=context, pack=pack)
        return
    found = cut("x", tokenizer, context=context, pack=pack)
    assert (found.lengths == context).all()
    if bos:
        assert (found.tokens[:, 0] == tokenizer.bos_token_id).all()
    decoded = [tokenizer.decode(row[bos:]).replace("<s>", "|") for row in found.tokens]
    assert decoded == expected
    if pack:
        assert found.document.tolist() == list(range(len(expected)))
    else:
        assert [texts[index] for index in found.document] == [
            text for text in texts for _ in range(len(text) // width)
        ]


def test_tokens_asked_for_are_rounded_down_to_whole_windows(tmp_path):
    path = write(tmp_path / "a.jsonl", ["x" * 100] * 10)
    assert cut(path, TOKENIZER, context=10, tokens=57).tokens.shape == (5, 10)


def test_too_few_tokens_are_refused_with_a_context_that_would_do(tmp_path):
    path = write(tmp_path / "a.jsonl", ["x" * 30] * 10)
    with pytest.raises(
        Refusal, match=r"240 tokens were asked for, a.jsonl has 0 .* of 40"
    ) as refused:
        cut(path, TOKENIZER, context=40, tokens=240)
    context = int(str(refused.value).split("`context` ")[1].split()[0])
    assert cut(path, TOKENIZER, context=context, tokens=240).tokens.size > 240 - context
    with pytest.raises(Refusal):
        cut(path, TOKENIZER, context=context + 1, tokens=240)
    with pytest.raises(Refusal, match="ask for `tokens` 200, or read a longer text") as refused:
        cut(path, TOKENIZER, context=20, tokens=10_000)
    assert cut(path, TOKENIZER, context=20, tokens=200).tokens.size == 200
    with pytest.raises(Refusal, match="all of it is 300 tokens long: read a longer text"):
        cut(path, TOKENIZER, context=400, tokens=10_000)


def test_indices_of_documents_mean_the_same_where_the_source_is_the_same(tmp_path):
    one = write(tmp_path / "a.jsonl", ["x" * 30] * 10)
    (tmp_path / "b").mkdir()
    other = write(tmp_path / "b" / "a.jsonl", ["y" * 30] * 10)
    hashes = [
        cut(path, TOKENIZER, context=context).source_sha256
        for path, context in ((one, 20), (one, 10), (other, 20))
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    assert first_documents(one, TOKENIZER, context=8, count=3).source_sha256 == hashes[0]
    assert cut("builtin", TOKENIZER, context=20, tokens=40).settings()["source_sha256"]


def test_the_hash_changes_with_tokens_order_and_division(tmp_path):
    path = write(tmp_path / "a.jsonl", [f"{i} " * 40 for i in range(10)])
    found = [
        cut(path, TOKENIZER, context=20),
        cut(path, TOKENIZER, context=20, seed=1),
        cut(path, TOKENIZER, context=10),
        first_documents(path, TOKENIZER, context=20, count=4),
    ]
    assert len({one.sha256() for one in found}) == 4
    assert cut(path, TOKENIZER, context=20).sha256() == found[0].sha256()


def test_the_first_documents_are_one_a_sequence_cut_off_at_the_context(tmp_path):
    path = write(tmp_path / "a.jsonl", ["abcdef", "", "ab", "abcdefghijkl"])
    found = first_documents(path, TOKENIZER, context=9, count=3)
    assert found.lengths.tolist() == [7, 3, 9]
    assert found.document.tolist() == [0, 2, 3]
    texts = [TOKENIZER.decode(row[1:n]) for row, n in zip(found.tokens, found.lengths, strict=True)]
    assert texts == ["abcdef", "ab", "abcdefgh"]
    with pytest.raises(Refusal, match="ask for `documents` 3"):
        first_documents(path, TOKENIZER, context=9, count=4)


def test_batches_cover_every_sequence_once(tmp_path):
    found = cut(write(tmp_path / "a.jsonl", ["x" * 95] * 3), TOKENIZER, context=10)
    for batch_tokens in (1, 10, 35, 1000):
        batches = found.batches(batch_tokens)
        assert np.concatenate([np.arange(30)[rows] for rows in batches]).tolist() == list(range(30))
        assert all(rows.stop - rows.start <= max(1, batch_tokens // 10) for rows in batches)


def test_the_builtin_text_is_there():
    texts = [text for _, text in documents("builtin")]
    assert sum(len(text.split()) for text in texts) > 12_000
    assert len(texts) > 60


def test_a_tokenizer_without_bos_is_recorded(tmp_path):
    path = write(tmp_path / "a.jsonl", ["x" * 50])
    assert cut(path, byte_tokenizer(bos=False), context=10).bos == "none: the tokenizer has no BOS"
    assert cut(path, TOKENIZER, context=10).bos == "<s> first"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b"  \n ", "a.txt holds no text"),
        ("a.txt", b"caf\xe9", "a.txt cannot be read as UTF-8 text"),
        ("a.jsonl", b'{"text": "caf\xe9"}', "a.jsonl cannot be read as UTF-8 text"),
        ("a.jsonl", b"no json", "a.jsonl cannot be read as json"),
        ("a.jsonl", b'{"body": "x"}', "no field 'text'; its fields are: body"),
        ("a.jsonl", b'{"text": "x"}\n{"text": null}', "document 1 of a.jsonl has None for text"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "x"}' * 99, mtime=0)[:-20],
            "cannot be unpacked",
        ),
        ("a.parquet", b"no parquet", "a.parquet cannot be read as parquet"),
        ("a.docx", b"x", "a.docx is not a corpus: it must end in .txt"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, name, content, problem):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(Refusal, match=problem) as refused:
        list(documents(path))
    assert "\n" not in str(refused.value)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(Refusal, match="there is no file"):
        list(documents(tmp_path / "none.jsonl"))
    with pytest.raises(Refusal, match="is a directory"):
        list(documents(tmp_path))
    with pytest.raises(Refusal, match=r"data set|cannot be opened"):
        list(documents("nobody/nothing"))
    with pytest.raises(Refusal, match="fewer than one sequence"):
        cut("builtin", TOKENIZER, context=50, tokens=20)
    with pytest.raises(Refusal, match="at least 3 tokens"):
        cut("builtin", TOKENIZER, context=2)


def test_a_hub_data_set_is_streamed_shuffled_and_keeps_its_indices(monkeypatch):
    listed = [{"text": f"text {i}", "index": "x", "document": "y"} for i in range(30)]
    rows = Dataset.from_list(listed).to_iterable_dataset()
    asked = []
    monkeypatch.setattr(
        hub, "load_dataset", lambda *args, **options: asked.append((args, options)) or rows
    )
    found = list(documents("owner/name:config", seed=5, split="validation"))
    assert asked == [(("owner/name", "config"), {"split": "validation", "streaming": True})]
    assert sorted(found) == [(i, f"text {i}") for i in range(30)] != found
    assert list(islice(documents("owner/name"), 2)) == [(0, "text 0"), (1, "text 1")]
