from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr
from families import tiny
from strict import StrictBackend
from test_wic import word_level

from probes import suffix
from probes.neuron_choice import choose_neurons, draw_controls
from probes.neuron_groups import GROUPS, fit_groups
from probes.settings import SuffixSettings
from probes.suffix import probe_suffix
from probes.windows import Task, make_task, tokens_ending_in
from robustness.errors import Refusal
from robustness.files import netcdf
from robustness.measurements.prediction_neurons import neurons
from robustness.models.opening import open_model
from robustness.models.output_weights import open_weights
from robustness.models.weight_processing import process
from robustness.runs.settings import RunOptions


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A hundred documents of words, one in ten of which ends in 7."""
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "words.jsonl"
    lines = []
    for _ in range(100):
        words = random.integers(1, 101, 60)
        lines.append('{"text": "' + " ".join(f"w{word}" for word in words) + '"}')
    path.write_text("\n".join(lines))
    return path


def sevens(text):
    return SuffixSettings(text, suffix="7", items=400)


@pytest.fixture
def few(monkeypatch):
    """Groups of six neurons at most: fitting probes is most of the time."""
    monkeypatch.setattr(suffix, "choose_neurons", partial(choose_neurons, count=6))


def opened(family="gpt2"):
    return open_model(tiny(family, torch.float32), tokenizer=word_level(101))


def test_tokens_are_chosen_by_their_end():
    tokenizer = word_level(101)
    found = tokens_ending_in(tokenizer, "7")
    assert found.tolist() == list(range(7, 100, 10))
    with pytest.raises(Refusal, match="no token of 101 ends in 'ing'"):
        tokens_ending_in(tokenizer, "ing")


def test_windows_are_balanced_divided_by_document_and_end_as_they_should(text):
    wanted = tokens_ending_in(word_level(101), "7")
    task = make_task(word_level(101), wanted, SuffixSettings(text, items=600))
    assert task.tokens.shape == (600, 25) and (task.tokens[:, 0] == 0).all()
    assert (np.isin(task.tokens[:, -1], wanted) == task.label).all()
    assert task.label.mean() == 0.5
    for document in np.unique(task.document):
        here = task.document == document
        assert len(set(task.part[here])) == 1
    shares = [(task.part == part).mean() for part in ("train", "dev", "test")]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.06)
    again = make_task(word_level(101), wanted, SuffixSettings(text, items=600))
    assert (task.tokens == again.tokens).all() and (task.part == again.part).all()


def test_too_little_text_is_refused_with_what_there_is(text, tmp_path):
    with pytest.raises(Refusal, match=r"has \d+ windows of 24 tokens that end .*; 200 are needed"):
        make_task(word_level(101), np.array([7]), SuffixSettings(text, items=600))
    with pytest.raises(Refusal, match="80 items are too few: ask for `items` 400 or more"):
        SuffixSettings(text, items=80)
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(text.read_text().splitlines()[:20]))
    wanted = np.arange(0, 101, 2)
    with pytest.raises(Refusal, match=r"gives \d document\(s\) for dev, and 10 are needed"):
        make_task(word_level(101), wanted, SuffixSettings(few, items=600))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_neurons_are_chosen_by_what_the_processed_weights_do_to_the_logits(family):
    net = tiny(family)
    wanted = np.array([3, 50, 77])
    chosen = choose_neurons(open_weights(net), neurons(net), wanted, 12)
    done = process(open_model(net))
    unembedding = done.get_output_embeddings().weight.detach().numpy()
    mask = np.isin(np.arange(101), wanted)
    name = "c_proj" if family == "gpt2" else "down_proj"
    parts = [part for path, part in done.named_modules() if path.endswith(f"mlp.{name}")]
    written = [
        (part.weight if family == "gpt2" else part.weight.T).detach().numpy() for part in parts
    ]
    logits = np.stack([rows @ unembedding.T for rows in written])
    shift = logits[..., mask].mean(-1) - logits[..., ~mask].mean(-1)
    order = np.argsort(-abs(shift), axis=None)[:12]
    layer, index = np.unravel_index(order, shift.shape)
    assert (chosen.layer.values == layer).all() and (chosen["index"].values == index).all()
    np.testing.assert_allclose(chosen["shift"], shift[layer, index], rtol=1e-3)
    np.testing.assert_allclose(chosen.effect.sum("bin"), 1)


def planted(seed=0, items=2000):
    """Two neurons that tell half each, others that tell nothing, and one that misleads on test."""
    random = np.random.default_rng(seed)
    label = random.random(items) < 0.5
    part = np.repeat(["train", "dev", "test"], [1200, 400, 400])
    activation = random.normal(size=(6, items)).astype(np.float32)
    activation[0] += 1.2 * (2 * label - 1)
    activation[1] -= 1.2 * (2 * label - 1)
    sign = np.where(part == "test", -3, 3)
    activation[2] += sign * (2 * label - 1)
    dataset = xr.Dataset(
        {
            "activation": (("neuron", "window"), activation),
            "control": (("neuron", "window"), random.normal(size=(6, items))),
            "top": ("window", label.astype(float)),
            "share": ("window", 0.2 + 0.2 * label),
        }
    )
    task = Task(np.zeros((items, 25), int), label, np.arange(items) // 5, part, items)
    shift = np.array([1.0, -1.0, 0.5, 0.4, -0.4, 0.3])
    chosen = xr.Dataset({"shift": ("neuron", shift)}, coords={"neuron": range(6)})
    return dataset, task, chosen


@pytest.mark.slow
def test_complementary_neurons_beat_each_and_ranking_does_not_see_the_test():
    dataset, task, chosen = planted()
    data = fit_groups(dataset, task, chosen, 0)
    single = data.single_accuracy.values
    # On train and dev the misleading neuron is the best, so it comes first, to its harm on test.
    assert data.single_dev_accuracy.values.argmax() == 2 and single[2] < 0.05
    assert data.accuracy.sel(kind="mixed", size=1) == single[2]
    dataset = dataset.copy(deep=True)
    dataset["activation"].values[2] = 0
    data = fit_groups(dataset, task, chosen, 0)
    best = data.single_accuracy.max()
    assert data.accuracy.sel(kind="mixed", size=2) > best + 0.02
    assert data.accuracy_low.sel(kind="mixed", size=2) > best - 0.03
    assert data.single_accuracy.values[:2].min() > 0.8
    assert data.kind.values.tolist() == list(GROUPS)
    assert data.accuracy.sel(kind="prediction").notnull().sum() == 4
    assert data.accuracy.sel(kind="suppression").notnull().sum() == 2
    assert (data.correct.sel(kind="suppression", size=3) == -1).all()
    for kind in ("random", "shuffled"):
        assert abs(data.accuracy.sel(kind=kind) - 0.5).max() < 0.1
    half = 1 - task.label[1600:].mean()
    np.testing.assert_allclose(data.model_accuracy, [1, half, 1])


@pytest.mark.slow
def test_activations_are_those_before_the_last_token(text, few):
    model = opened("llama")
    net = model.traced._module
    data = probe_suffix(model, net, sevens(text))
    wanted = tokens_ending_in(model.tokenizer, "7")
    task = make_task(model.tokenizer, wanted, sevens(text))
    test = task.part == "test"
    with torch.no_grad():
        logits = net(torch.from_numpy(task.tokens[:, :-1])).logits[:, -1]
    top = np.isin(logits.argmax(-1).numpy(), wanted)
    assert data.model_accuracy.sel(reading="hard") == (top == task.label)[test].mean()
    share = logits.softmax(-1)[:, wanted].sum(-1).numpy()
    assert data.model_accuracy.sel(reading="half") == ((share > 0.5) == task.label)[test].mean()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_each_neuron_is_read_where_it_is(text, family, monkeypatch):
    model = opened(family)
    net = model.traced._module
    kept = {}

    def spy(dataset, task, chosen, _seed):
        kept.update(dataset=dataset, task=task, chosen=chosen)
        return dataset

    monkeypatch.setattr("probes.suffix.fit_groups", spy)
    probe_suffix(model, net, sevens(text))
    layers, indices = kept["chosen"].layer.values, kept["chosen"]["index"].values
    assert (np.diff(layers) < 0).any() and len(np.unique(layers)) > 1, "in no order of layers"
    seen = []
    name = {"gpt2": "c_proj", "llama": "down_proj"}[family]
    for path, part in net.named_modules():
        if path.endswith(f"mlp.{name}"):
            part.register_forward_pre_hook(lambda _m, args: seen.append(args[0][:, -2]))
    with torch.no_grad():
        net(torch.from_numpy(kept["task"].tokens), use_cache=False)
    assert kept["dataset"].neuron.values.tolist() == list(range(len(layers)))
    for row, (layer, index) in enumerate(zip(layers, indices, strict=True)):
        expected = seen[layer][:, index]
        np.testing.assert_allclose(kept["dataset"].activation[row], expected, 1e-4, 1e-4)
    controls = draw_controls(layers, indices, seen[0].shape[1], 0)
    places = set(zip(layers.tolist(), indices.tolist(), strict=True))
    for row, (layer, index) in enumerate(zip(layers, controls, strict=True)):
        np.testing.assert_allclose(kept["dataset"].control[row], seen[layer][:, index], 1e-4, 1e-4)
        assert (layer, index) not in places
    assert len(set(zip(layers.tolist(), controls.tolist(), strict=True))) == len(layers)


@pytest.mark.slow
def test_a_set_of_tokens_will_do_and_a_tokenizer_must_be_there(text, few):
    model = opened()
    net = model.traced._module
    by_suffix = probe_suffix(model, net, sevens(text))
    wanted = tokens_ending_in(model.tokenizer, "7")
    by_tokens = probe_suffix(model, net, replace(sevens(text), wanted=tuple(wanted)))
    xr.testing.assert_equal(by_suffix, by_tokens)
    with pytest.raises(Refusal, match="there is no tokenizer"):
        probe_suffix(open_model(tiny("gpt2")), net, SuffixSettings(text))


@pytest.mark.slow
def test_on_a_server_and_resumed_it_is_the_same(text, few, tmp_path):
    model = opened("gpt_neox")
    net = model.traced._module
    whole = probe_suffix(model, net, sevens(text))
    remote = replace(model, request={"backend": StrictBackend(model.traced)})
    found = probe_suffix(remote, net, sevens(text), RunOptions(batch_tokens=2000))
    xr.testing.assert_allclose(whole, found, atol=0.02)

    def stop(done, _total):
        if done > 200:
            raise KeyboardInterrupt

    options = RunOptions(out=tmp_path / "seven.nc", batch_tokens=1000)
    with pytest.raises(KeyboardInterrupt):
        probe_suffix(model, net, sevens(text), replace(options, progress=stop))
    assert netcdf.load(tmp_path / "seven.partial.nc").sequences_done > 200
    resumed = probe_suffix(model, net, sevens(text), options)
    xr.testing.assert_equal(resumed, netcdf.load(tmp_path / "seven.nc"))
    xr.testing.assert_allclose(whole, resumed, atol=0.02)
    xr.testing.assert_equal(resumed, probe_suffix(model, net, sevens(text), options))
    assert [file.name for file in tmp_path.iterdir()] == ["seven.nc"]
