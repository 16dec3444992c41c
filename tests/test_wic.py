import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from families import tiny
from strict import StrictBackend
from tokenizers_for_tests import byte_tokenizer, word_level
from transformers import LlamaConfig, LlamaForCausalLM

from probes.pairs import _from_row, read_pairs
from probes.settings import WicSettings
from probes.wic import align, fit_depths, probe_wic
from robustness.errors import Refusal
from robustness.files import netcdf
from robustness.models.opening import open_model
from robustness.runs.settings import RunOptions


def rows(count, seed=0, longest=12):
    """Pairs in which a word has one of two forms: it means the same where the forms are equal."""
    random = np.random.default_rng(seed)
    lines, labels = [], []
    for _ in range(count):
        forms = random.integers(0, 2, 2)
        places = random.integers(0, 3, 2)
        sentences = []
        for form, place in zip(forms, places, strict=True):
            words = [f"w{index}" for index in random.integers(10, 30, random.integers(3, longest))]
            words[place] = f"w{1 + form}"
            sentences.append(" ".join(words))
        lines.append(f"w1\tN\t{places[0]}-{places[1]}\t{sentences[0]}\t{sentences[1]}")
        labels.append("T" if forms[0] == forms[1] else "F")
    return lines, labels


def write_pairs(directory, *counts):
    for seed, (part, count) in enumerate(zip(("train", "dev", "test"), counts, strict=True)):
        lines, labels = rows(count, seed)
        (directory / f"{part}.data.txt").write_text("\n".join(lines) + "\n")
        (directory / f"{part}.gold.txt").write_text("\n".join(labels) + "\n")
    return directory


@pytest.fixture
def wic(tmp_path):
    return write_pairs(tmp_path, 200, 60, 100)


@pytest.fixture
def few(tmp_path):
    """Fewer pairs, for tests in which no probe has to find anything."""
    return write_pairs(tmp_path, 40, 20, 20)


@pytest.fixture(scope="module")
def model():
    return open_model(tiny("llama"), tokenizer=word_level(40))


@pytest.mark.slow
def test_a_sense_that_is_there_is_found_and_shuffled_labels_are_at_chance(model, wic):
    data = probe_wic(model, WicSettings(wic))
    assert data.accuracy.dims == ("probe", "depth") and data.sizes["depth"] == 5
    accuracy = data.accuracy.sel(depth=0)
    assert accuracy.sel(probe="pair") > 0.95 and accuracy.sel(probe="threshold") > 0.9
    assert (data.accuracy_low.sel(probe="pair") > 0.5).all()
    # A sum of two things, each present or not, tells three of the four cases at best.
    assert accuracy.sel(probe="concatenation") < 0.8
    chosen = data.sel(probe="shuffled")
    inside = (chosen.accuracy_low <= 0.5) & (chosen.accuracy_high >= 0.5)
    assert inside.mean() >= 0.8
    assert data.test_pairs == "100 of 100"


def test_a_direction_planted_in_one_depth_is_found_there():
    random = np.random.default_rng(0)
    parts = np.repeat(["train", "dev", "test"], [400, 100, 300])
    senses = random.integers(0, 2, (800, 2)) * 2 - 1
    states = random.normal(size=(3, 16, 1600)).astype(np.float32)
    states[1, 3] += 3 * senses.ravel()
    pairs = [type("P", (), {"word": "w", "same": bool(a == b)})() for a, b in senses]
    dataset = xr.Dataset(
        {"state": (("depth", "feature", "sentence"), states)},
        coords={"depth": range(3), "feature": range(16), "sentence": range(1600)},
    )
    data = fit_depths(dataset, parts, pairs, 0)
    accuracy = data.accuracy.sel(probe="pair").values
    assert accuracy[1] > 0.85 and abs(accuracy[[0, 2]] - 0.5).max() < 0.1


@pytest.mark.slow
def test_states_are_those_of_the_word_in_the_sentence_alone(model, few, monkeypatch):
    kept = {}

    def spy(dataset, *_):
        kept.update(dataset=dataset)
        return dataset

    monkeypatch.setattr("probes.wic.fit_depths", spy)
    net = model.traced._module
    pairs = [pair for part in read_pairs(few).values() for pair in part]
    for batch_tokens in (1, 400):
        probe_wic(model, WicSettings(few), RunOptions(batch_tokens=batch_tokens))
        states = kept["dataset"].state
        order = states.sentence.values
        assert (np.diff(order) < 0).any(), "sorted by length"
        for place, at in list(enumerate(order))[::7]:
            sentence, span = pairs[at // 2].sentences[at % 2], pairs[at // 2].spans[at % 2]
            ids, mask = align(sentence, span, model.tokenizer, None)
            with torch.no_grad():
                hidden = net.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            word = [state[0, mask > 0].mean(0) for state in hidden[:-1]]
            np.testing.assert_allclose(states[:-1, :, place], torch.stack(word), atol=1e-5)


def test_states_of_the_test_part_choose_nothing():
    random = np.random.default_rng(0)
    parts = np.repeat(["train", "dev", "test"], [200, 100, 100])
    states = random.normal(size=(1, 8, 800)).astype(np.float32)
    same = random.random(400) < 0.5
    pairs = [type("P", (), {"word": "w", "same": bool(each)})() for each in same]

    def probed(values):
        dims = ("depth", "feature", "sentence")
        return fit_depths(xr.Dataset({"state": (dims, values)}).assign_coords(
            depth=[0], feature=range(8), sentence=range(800)), parts, pairs, 0)  # fmt: skip

    moved = states.copy()
    moved[..., 600:] = moved[..., 600:] * 50 + 7
    before, after = probed(states), probed(moved)
    xr.testing.assert_equal(before.chosen, after.chosen)
    xr.testing.assert_equal(before.dev_accuracy, after.dev_accuracy)


@pytest.mark.slow
def test_on_a_server_it_is_the_same(model, few):
    remote = replace(model, request={"backend": StrictBackend(model.traced)})
    xr.testing.assert_equal(probe_wic(remote, WicSettings(few)), probe_wic(model, WicSettings(few)))


@pytest.mark.slow
def test_it_resumes_and_leaves_one_file(model, few, tmp_path):
    out = tmp_path / "out" / "wic.nc"
    settings, options = WicSettings(few), RunOptions(out=out, batch_tokens=100)

    def stop(done, _total):
        if done > 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe_wic(model, settings, replace(options, progress=stop))
    assert netcdf.load(out.with_name("wic.partial.nc")).sequences_done > 60
    data = probe_wic(model, settings, options)
    assert [file.name for file in out.parent.iterdir()] == ["wic.nc"]
    xr.testing.assert_equal(data, probe_wic(model, WicSettings(few)))
    xr.testing.assert_equal(data, probe_wic(model, settings, options))


@pytest.mark.parametrize(
    ("sentence", "word"),
    [
        ("She carries it .", "carries"),
        ("(carried)", "carried"),
        ("carry on , and carry on", "carry"),
        ("naïve café", "café"),
    ],
)
def test_a_words_tokens_are_those_that_cover_it(sentence, word):
    tokenizer = byte_tokenizer()
    first = sentence.rindex(word)
    ids, mask = align(sentence, (first, first + len(word)), tokenizer, None)
    chosen = [token for token, inside in zip(ids, mask, strict=True) if inside]
    assert tokenizer.decode(chosen) == word
    assert len(ids) == len(mask) and ids[0] == tokenizer.bos_token_id
    assert align(sentence, (first, first + len(word)), tokenizer, 3) is None


def test_lines_of_json_are_read_like_the_published_files(wic, tmp_path):
    published = read_pairs(wic)
    other = tmp_path / "json"
    other.mkdir()
    for part, pairs in published.items():
        found = []
        for pair in pairs:
            row = {"word": pair.word, "label": pair.same}
            for side, sentence, span in zip("12", pair.sentences, pair.spans, strict=True):
                row |= {f"sentence{side}": sentence, f"start{side}": span[0], f"end{side}": span[1]}
            found.append(json.dumps(row))
        (other / f"{'val' if part == 'dev' else part}.jsonl").write_text("\n".join(found))
    assert read_pairs(other) == published


def test_a_data_set_like_superglues_is_read(monkeypatch):
    row = {"word": "run", "sentence1": "They run", "sentence2": "It runs well", "label": 1}
    data = {"train": [row, row | {"label": 0}] * 150, "validation": [row, row | {"label": 0}] * 20}
    monkeypatch.setattr("probes.pairs.load_dataset", lambda _name, _config, split: data[split])
    found = read_pairs("super_glue:wic")
    assert [len(found[part]) for part in ("train", "dev", "test")] == [270, 30, 40]
    assert found["test"][0].spans == ((5, 8), (3, 7))


def test_what_is_around_a_word_is_not_of_it(wic):
    path = wic / "test.data.txt"
    lines = path.read_text().splitlines()
    lines[0] = "w1\tN\t0-1\t(w1), w5\tw6 w2."
    path.write_text("\n".join(lines) + "\n")
    pair = read_pairs(wic)["test"][0]
    assert [s[a:b] for s, (a, b) in zip(pair.sentences, pair.spans, strict=True)] == ["w1", "w2"]


@pytest.mark.parametrize(
    ("word", "sentence", "found"),
    [("run", "On the runway they run", "run"), ("carry", "He carried it", "carried")],
)
def test_a_word_without_its_place_is_found_in_the_sentence(word, sentence, found):
    row = {"word": word, "sentence1": sentence, "sentence2": sentence, "label": "T"}
    (first, last), _ = _from_row(row, "here").spans
    assert sentence[first:last] == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": ["T"]}, "neither T nor F"),
        ({"word": 3}, "word is 3, no text"),
        ({"start1": "0", "end1": "1"}, "no positions of characters"),
        ({"start1": 3, "end1": 99}, "has no characters 3 to 99"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused(change, message):
    row = {"word": "a", "sentence1": "a b", "sentence2": "a c", "label": "T"}
    with pytest.raises(Refusal, match=message):
        _from_row(row | change, "here")
    with pytest.raises(Refusal, match="there is no word"):
        _from_row([1], "here")


BAD = {
    "lengths": ("dev.gold.txt", lambda text: text + "T\n", "has 60 lines and dev.gold.txt has 61"),
    "fields": ("train.data.txt", lambda text: "a\tb\n" + text[text.index("\n") + 1 :], "2 fields"),
    "label": ("test.gold.txt", lambda text: "X" + text[1:], "'X', neither T nor F"),
    "place": (
        "train.data.txt",
        lambda text: text.replace("\tN\t", "\tN\t9", 1),
        r"train\.data\.txt, line 1: .* has no word at position 9",
    ),
    "indices": ("dev.data.txt", lambda text: text.replace("-", "_", 1), "is not two positions"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_line_that_cannot_be_used_is_named(wic, case):
    name, change, message = BAD[case]
    (wic / name).write_text(change((wic / name).read_text()))
    with pytest.raises(Refusal, match=message):
        read_pairs(wic)


def test_what_is_not_there_is_refused(model, wic, tmp_path):
    with pytest.raises(Refusal, match="there is no directory"):
        read_pairs(Path("nowhere"))
    (wic / "dev.gold.txt").unlink()
    with pytest.raises(Refusal, match=r"has dev\.data\.txt but no dev\.gold\.txt"):
        read_pairs(wic)
    (tmp_path / "few").mkdir()
    for part in ("train", "dev", "test"):
        line = json.dumps({"word": "a", "sentence1": "a b", "sentence2": "bcd c", "label": True})
        (tmp_path / "few" / f"{part}.jsonl").write_text(line)
    with pytest.raises(Refusal, match="'a' is not in 'bcd c'"):
        read_pairs(tmp_path / "few")


def test_a_tokenizer_without_offsets_is_refused(wic):
    with pytest.raises(Refusal, match="has no offsets"):
        probe_wic(open_model(tiny("llama")), WicSettings(wic))


def test_pairs_that_do_not_fit_are_counted_and_too_many_are_refused(wic):
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=5, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = open_model(LlamaForCausalLM(config), tokenizer=word_level(40))
    for seed, (part, count) in enumerate((("train", 200), ("dev", 60), ("test", 100))):
        lines, labels = rows(count, seed, 5)
        (wic / f"{part}.data.txt").write_text("\n".join(lines) + "\n")
        (wic / f"{part}.gold.txt").write_text("\n".join(labels) + "\n")
    path = wic / "train.data.txt"
    lines = path.read_text().splitlines()
    lines[:3] = [f"{line} w5 w6 w7" for line in lines[:3]]
    path.write_text("\n".join(lines))
    assert probe_wic(model, WicSettings(wic)).train_pairs == "197 of 200"
    path.write_text("\n".join(f"{line} w5 w6 w7" for line in lines))
    with pytest.raises(Refusal, match="in 200 of 360 pairs"):
        probe_wic(model, WicSettings(wic))


@pytest.mark.slow
def test_every_nth_depth_has_the_numbers_of_all_depths(model, few):
    every, some = probe_wic(model, WicSettings(few)), probe_wic(model, WicSettings(few, every=3))
    assert some["depth"].values.tolist() == [0, 3, 4]
    for name in ("correct", "accuracy", "chosen"):
        expected = every[name].sel(depth=some["depth"], probe=["pair", "threshold"])
        xr.testing.assert_equal(some[name].sel(probe=["pair", "threshold"]), expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_states_come_from_a_server_in_its_own_half_precision(few, dtype):
    here = open_model(tiny("llama").to(dtype), tokenizer=word_level(40))
    backend = StrictBackend(here.traced)
    there = replace(here, request={"backend": backend})
    kept = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, model in (("here", here), ("there", there)):
            patch.setattr(
                "probes.wic.fit_depths", lambda states, *_, name=name: kept.setdefault(name, states)
            )
            probe_wic(model, WicSettings(few))
    exact, rounded = (torch.from_numpy(kept[name]["state"].values) for name in ("here", "there"))
    # Words of these pairs are one token each, whose state is in half precision already.
    assert torch.equal(exact, rounded) and exact.any()
    assert kept["there"].attrs["states_dtype"] == str(dtype).removeprefix("torch.")
    assert "states_dtype" not in kept["here"].attrs
    numbers = exact.numel()
    assert 2 * numbers < sum(backend.received) < 3 * numbers


def test_states_that_memory_has_no_room_for_are_refused_before_anything_is_run(
    model, few, monkeypatch
):
    monkeypatch.setattr("probes.wic.fill", lambda *_: pytest.fail("something is run"))
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1e4}))
    with pytest.raises(Refusal, match=r"160 sentences at 5 depths take .* a larger `every`"):
        probe_wic(model, WicSettings(few))
    with pytest.raises(Refusal, match="`every` 1 or more"):
        WicSettings(few, every=0)
