"""Metrics of a user's own in sweeps, against plain computations from logits in float64."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from families import tiny
from strict import StrictBackend

from recipes.views import draw, table
from robustness.errors import OtherSettings, Refusal
from robustness.files import TokenMetric, load
from robustness.files.metrics import READOUTS
from robustness.models.facts import Facts
from robustness.models.opening import open_model
from robustness.schedules.built_in import intervention
from robustness.sweeps import merge, sweep
from robustness.sweeps.shards import Shard
from robustness.sweeps.token_file import beside
from robustness.text.corpus import Corpus
from robustness.trace import readout


def rotation(states, clean):
    return 1 - torch.cosine_similarity(states, clean.expand_as(states), dim=-1)


def rank(logits, clean, targets):
    chosen = targets.expand(logits.shape[:-1])[..., None]
    return (logits > logits.gather(-1, chosen)).sum(-1)


def overlap(logits, clean, targets):
    both = torch.minimum(logits.softmax(-1), clean.softmax(-1))
    return both.sum(-1)


def surprise(readouts, clean):
    return readouts["loss"] - clean["loss"]


def same_loss(readouts, clean):
    return readouts["loss"]


OWN = (
    TokenMetric("rotation", "1", "1 - cosine of final states", function=rotation,
                reads="final states"),
    TokenMetric("rank", "1", "tokens above the next", function=rank, reads="logits",
                tokens="predicted"),
    TokenMetric("overlap", "1", "overlap with the clean prediction", function=overlap,
                reads="logits"),
    TokenMetric("surprise", "nat", "rise of the loss", function=surprise, tokens="predicted"),
    TokenMetric("same_loss", "nat", "loss again", function=same_loss, tokens="predicted"),
)  # fmt: skip

NAMES = ("drop", "swap")


def corpus(sequences=6):
    generator = np.random.default_rng(5)
    tokens = generator.integers(0, 101, (sequences, 12))
    return Corpus(
        tokens=tokens,
        lengths=np.full(sequences, 12),
        document=np.arange(sequences) // 2,
        name="random",
        rule="windows",
        bos="none",
        seed=0,
    )


def plain_logits(net, tokens, order):
    """Logits and final states, as the head receives them, with blocks in another order."""
    net, kept = tiny_with(net, order), []
    hook = net.lm_head.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    with torch.no_grad():
        logits = net(tokens, use_cache=False).logits
    hook.remove()
    return logits, kept[0]


def tiny_with(net, order):
    net = copy.deepcopy(net)
    net.transformer.h = torch.nn.ModuleList([net.transformer.h[layer] for layer in order])
    return net


def expected(net, tokens, order):
    """Means over the tokens of every sequence, by name."""
    (before, clean), (after, states) = (
        plain_logits(net, tokens, which) for which in (range(len(net.transformer.h)), order)
    )
    query = slice(1, -1)
    before, clean, after, states = (each[:, query] for each in (before, clean, after, states))
    targets = tokens[:, 2:]
    distribution = torch.distributions.Categorical(logits=after)
    reference = torch.distributions.Categorical(logits=before)
    angle = (states * clean).sum(-1) / (states.norm(dim=-1) * clean.norm(dim=-1))
    true = after.gather(-1, targets[..., None])
    distance = (distribution.probs - reference.probs).abs().sum(-1) / 2
    values = {
        "rotation": 1 - angle,
        "rank": (after > true).sum(-1).double(),
        "overlap": 1 - distance,
        "surprise": reference.log_prob(targets) - distribution.log_prob(targets),
        "same_loss": -distribution.log_prob(targets),
    }
    return {name: value.mean(-1).numpy() for name, value in values.items()}


def check(data, net, tokens):
    layers = data.sizes["layer"]
    for name in NAMES:
        for (layer,), order in intervention(name).schedules(layers).items():
            wanted = expected(net, tokens, order)
            for metric, values in wanted.items():
                found = data[metric].sel(intervention=name, layer=layer)
                np.testing.assert_allclose(found, values, atol=1e-9, err_msg=metric)


@pytest.fixture
def net():
    return tiny("gpt2", torch.float64)


@pytest.mark.parametrize("at_once", [1, 900, 2**20])
def test_metrics_of_each_kind_equal_the_plain_computation(net, monkeypatch, at_once):
    monkeypatch.setitem(readout.LOGITS_AT_ONCE, "cpu", at_once)
    data = sweep(open_model(net), corpus(), NAMES, metrics=OWN)
    check(data, net, torch.from_numpy(corpus().tokens))
    assert data["rank"].attrs == {
        "units": "1", "long_name": "tokens above the next", "tokens": "predicted"
    }  # fmt: skip


@pytest.mark.slow
def test_metrics_travel_to_a_server(net):
    model = open_model(net)
    far = replace(model, request={"backend": StrictBackend(model.traced)}, facts=Facts())
    data = sweep(far, corpus(), NAMES, metrics=OWN)
    check(data, net, torch.from_numpy(corpus().tokens))


def test_a_metric_changes_no_other_number(net):
    alone = sweep(open_model(net), corpus(), NAMES)
    data = sweep(open_model(net), corpus(), NAMES, metrics=OWN)
    for name in alone.variables:
        xr.testing.assert_identical(data[name].variable, alone[name].variable)
    assert "metrics" not in alone.attrs
    assert data.attrs["metrics"] == ", ".join(metric.name for metric in OWN)
    xr.testing.assert_equal(data.same_loss, data.loss)


@pytest.mark.slow
def test_shards_tokens_and_views_know_metrics(net, tmp_path):
    model, text = open_model(net), corpus()
    asked = {"metrics": OWN, "readouts": ["kl"], "per_token": True, "batch_tokens": 24}
    whole = sweep(model, text, NAMES, out=tmp_path / "whole.nc", **asked)
    parts = []
    for index in (1, 2):
        parts.append(tmp_path / f"{index}.nc")
        sweep(model, text, NAMES, out=parts[-1], shard=Shard(index, 2), **asked)
    merged = merge(parts, tmp_path / "merged.nc")
    of_merged = xr.load_dataset(beside(tmp_path / "merged.nc"))
    for metric in OWN:
        xr.testing.assert_identical(merged[metric.name], whole[metric.name])
        mean = of_merged[metric.name].where(of_merged[metric.tokens] == 1).mean("token")
        xr.testing.assert_allclose(mean, whole[metric.name].transpose(*mean.dims))
        assert of_merged[metric.name].attrs == metric.attrs
    for file in (tmp_path / "whole.nc", beside(tmp_path / "merged.nc")):
        data = load(file)
        columns = [column.name for column in table(data).tables[0].columns]
        assert {metric.name for metric in OWN} <= {*columns}
        titles = " ".join(axis.get_title() for axis in draw(data).axes)
        assert "overlap with the clean prediction" in titles


def test_a_run_of_another_function_is_not_resumed(net, tmp_path):
    model, out = open_model(net), tmp_path / "a.nc"
    sweep(model, corpus(), metrics=OWN, out=out)
    sweep(model, corpus(), metrics=OWN, out=out)
    changed = (*OWN[:-1], replace(OWN[-1], function=surprise))
    with pytest.raises(OtherSettings, match="with another function or record of its metrics"):
        sweep(model, corpus(), metrics=changed, out=out)
    with pytest.raises(OtherSettings, match="made with metrics "):
        sweep(model, corpus(), out=out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "kl"}, "holds kl already"),
        ({"name": "clean_it"}, "no name of a metric"),
        ({"name": "layer"}, "holds layer already"),
        ({"reads": "states"}, "there are: final states, logits, readouts"),
        ({"tokens": "all"}, "compared or predicted"),
        ({"unit": ""}, "no unit"),
        ({"function": rank.__call__}, "no plain function"),
        ({"clean_long_name": "of the clean model"}, "leave out `clean_long_name`"),
    ],
)
def test_a_record_that_cannot_be_measured_is_refused(changes, message):
    with pytest.raises(Refusal, match=message):
        replace(OWN[0], **changes)


def centred(logits, clean, targets):
    highest = logits.max(-1).values
    return highest - highest.mean(-1, keepdim=True)


def shifting(logits, clean, targets):
    return logits.sub_(1).max(-1).values


def random(logits, clean, targets):
    return torch.rand(logits.shape[:-1])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (centred, "the number of a token is another when the others are left out"),
        (random, "is another .* at every call"),
        (shifting, "changes its arguments; copy what is changed"),
    ],
)
def test_a_function_that_breaks_a_rule_is_refused_before_anything_is_measured(
    net, function, message
):
    with pytest.raises(Refusal, match=message):
        sweep(open_model(net), corpus(), metrics=[replace(OWN[1], function=function)])


def test_a_function_that_reads_what_is_not_measured_is_refused_at_once(net):
    def of_kl(readouts, clean):
        return readouts["kl"]

    metric = replace(OWN[-1], function=of_kl)
    assert sweep(open_model(net), corpus(), ["drop"], metrics=[metric]).same_loss.notnull().all()
    with pytest.raises(Refusal, match=r"which reads readouts, fails .* 'kl'"):
        sweep(open_model(net), corpus(), readouts=["loss"], metrics=[metric])


@pytest.mark.parametrize("given", [["rank"], "rank", [rank], rank, OWN[0]])
def test_what_is_no_list_of_metrics_is_refused(net, given):
    with pytest.raises(Refusal, match=r"TokenMetric\("):
        sweep(open_model(net), corpus(), metrics=given)


def test_a_finished_file_without_a_metric_that_is_measured_now_is_not_taken(net, tmp_path):
    out = tmp_path / "a.nc"
    data = sweep(open_model(net), corpus(), out=out)
    data.drop_vars("entropy").to_netcdf(out)
    with pytest.raises(OtherSettings, match="holds no entropy"):
        sweep(open_model(net), corpus(), out=out)


def test_a_function_that_fails_or_returns_what_it_should_not_is_refused_at_once(net):
    def summed(readouts, clean):
        return readouts["loss"].sum(-1)

    def mistaken(readouts, clean):
        return readouts["lose"]

    for function, message in ((summed, r"of shape \(2,\), not \(2, 3\)"), (mistaken, "no 'lose'")):
        with pytest.raises(Refusal, match=message):
            sweep(open_model(net), corpus(), metrics=[replace(OWN[-1], function=function)])
    with pytest.raises(Refusal, match="two metrics are called 'rank'"):
        sweep(open_model(net), corpus(), metrics=[OWN[1], OWN[1]])
    with pytest.raises(Refusal, match="has no function"):
        sweep(open_model(net), corpus(), metrics=READOUTS)
