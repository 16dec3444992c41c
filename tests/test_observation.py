import copy
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from families import BLOCKS, LAYERS, tiny
from oracles import plain as reference
from test_execution import corpus
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from robustness.errors import Refusal
from robustness.files import netcdf
from robustness.files.metrics import Metric
from robustness.files.sequences import measured_sequences
from robustness.measurements.measurement import MEASUREMENTS, Measurement, local_attention
from robustness.measurements.observation import observe
from robustness.measurements.requirements import unfit
from robustness.models.block_structure import examine
from robustness.models.opening import open_model
from robustness.runs.settings import RunOptions
from robustness.sweeps import residuals
from robustness.trace import capture

LOCAL = local_attention(6)
ALL = ("lens", LOCAL, "norms", "similarity")


def compare(found, text, net, eager):
    """Hold every file against plain transformers with hooks.

    Eager attention takes its softmax in float32, and root-mean-square norms divide in float32,
    whatever the type of the weights.
    """
    tokens = torch.from_numpy(text.tokens)
    expected = {
        "lens": reference.lens(net, tokens),
        "attention": reference.attention(eager, tokens, 6),
        "norms": reference.norms(net, tokens),
        "similarity": {"cosine": reference.similarity(net, tokens)},
    }
    for name, variables in expected.items():
        assert set(found[name].data_vars) - {"previous"} == set(variables)
        for variable, values in variables.items():
            limit = {"attention": 1e-6, "lens": 1e-7}.get(name, 1e-9)
            np.testing.assert_allclose(
                found[name][variable], values, atol=limit, rtol=limit, err_msg=f"{name} {variable}"
            )


@pytest.fixture(scope="module")
def eager(family):
    return tiny(family, attention="eager")


def test_every_measurement_equals_plain_transformers(model, plain, eager):
    text = corpus()
    found = observe(model, text, ALL, RunOptions(batch_tokens=24))
    compare(found, text, plain, eager)
    assert found["similarity"].cosine.std() > 0.1, "nothing differs"


@pytest.mark.slow
def test_through_the_strict_backend_it_is_the_same(strict_model, plain, eager):
    text = corpus(sequences=16)
    found = observe(strict_model, text, (*ALL, "cka"), RunOptions(batch_tokens=200))
    compare(found, text, plain, eager)
    xr.testing.assert_allclose(
        found["cka"].cka,
        observe(replace(strict_model, request={}), text, ("cka",))["cka"].cka,
        atol=1e-10,
    )


def test_eager_probabilities_and_those_from_queries_and_keys_are_equal(family, eager):
    text = corpus(sequences=2, length=20)
    found = observe(open_model(tiny(family, attention="eager")), text, (LOCAL,))
    other = observe(open_model(tiny(family)), text, (LOCAL,))
    for name, values in found["attention"].data_vars.items():
        np.testing.assert_allclose(values, other["attention"][name], atol=1e-6)


def test_sequences_of_different_length_are_each_measured_to_their_end(model, plain, eager):
    text = corpus(sequences=3, lengths=[12, 9, 12])
    text = replace(text, authors_alignment=False)
    found = observe(model, text, ALL, RunOptions(batch_tokens=100))
    for row, length in enumerate(text.lengths):
        alone = corpus(sequences=3).take(3)
        alone = replace(
            alone,
            tokens=text.tokens[row : row + 1, :length],
            lengths=text.lengths[row : row + 1],
            document=text.document[row : row + 1],
        )
        compare(
            {name: data.isel(sequence=[row]) for name, data in found.items()}, alone, plain, eager
        )


@pytest.mark.slow
def test_numbers_do_not_depend_on_the_batch(model):
    text = corpus(sequences=32)
    whole = observe(model, text, (*ALL, "cka"), RunOptions(batch_tokens=10_000))
    other = observe(model, text, (*ALL, "cka"), RunOptions(batch_tokens=1))
    for name, data in whole.items():
        for variable in data.data_vars:
            np.testing.assert_allclose(data[variable], other[name][variable], atol=1e-10)
    assert whole["cka"].sizes["batch"] == 2 and whole["cka"].batch_sequences == 16


def test_the_last_depth_of_the_recomputed_lens_is_the_models_own_output(model, plain):
    text = corpus()
    data = observe(model, text, ("lens",))["lens"].sel(lens="recomputed", depth=LAYERS)
    with torch.no_grad():
        logits = plain(torch.from_numpy(text.tokens), use_cache=False).logits
    own = torch.distributions.Categorical(logits=logits[:, 1:-1])
    np.testing.assert_allclose(data.entropy, own.entropy().mean(1), atol=1e-10)
    np.testing.assert_allclose(data.kl, 0, atol=1e-12)
    np.testing.assert_allclose(data.kl_reverse, 0, atol=1e-12)
    assert (data.agreement == 1).all()


def test_without_biases_the_frozen_lens_ends_at_the_models_output_too(family):
    net = tiny(family)
    norm = net.get_submodule(reference.NORMS.get(family, "model.norm"))
    for part in (norm, net.get_output_embeddings()):
        if getattr(part, "bias", None) is not None:
            torch.nn.init.zeros_(part.bias)
    data = observe(open_model(net), corpus(), ("lens",))["lens"]
    np.testing.assert_allclose(data.kl.sel(lens="frozen", depth=LAYERS), 0, atol=1e-12)
    assert (data.kl.sel(lens="frozen", depth=0) > 0.01).all()


def test_what_a_parallel_block_does_not_have_is_absent(model, family):
    data = observe(model, corpus(), ("norms",))["norms"]
    absent = {"middle_norm", "mlp_middle_ratio"}
    assert (family in reference.PARALLEL) == (not absent & set(data.data_vars))
    assert reference.centred(tiny(family)) == ("centred" in data.processing)


def test_norms_satisfy_pythagoras_and_angles_add_up(model):
    data = observe(model, corpus(), ("norms",))["norms"]
    if "centred" in data.processing:
        first = data.residual_norm.sel(statistic="first", depth=0) ** 2
        embedding = residuals(model, corpus().tokens, (0,)).isel(step=0, token=0)
        missing = embedding.sizes["feature"] * embedding.mean("feature") ** 2
        difference = first.sel(processing="raw") - first.sel(processing="centred")
        np.testing.assert_allclose(difference, missing, atol=1e-9)
    turns = data.angular_distance
    for layer in range(LAYERS - 1):
        one, next_one = turns.sel(layer=layer, span=1), turns.sel(layer=layer + 1, span=1)
        assert (turns.sel(layer=layer, span=2) <= one + next_one + 1e-12).all()


def test_a_block_that_writes_nothing_has_no_influence_and_swaps_without_a_trace(gpt2):
    net = tiny("llama")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        torch.nn.init.zeros_(net.get_submodule(f"model.layers.2.{name}").weight)
    found = observe(open_model(net), corpus(), ("norms", "similarity"))
    np.testing.assert_allclose(found["norms"].block_influence.sel(layer=2), 0, atol=1e-12)
    same = found["similarity"].cosine.sel(comparison="self_second", layer=2, component="mlp")
    np.testing.assert_allclose(same, 1, atol=1e-12)


def test_attention_that_is_even_has_the_entropy_of_its_keys(gpt2):
    net = tiny("llama")
    for block in net.model.layers:
        torch.nn.init.zeros_(block.self_attn.q_proj.weight)
    data = observe(open_model(net), corpus(), (LOCAL,))["attention"]
    queries = np.arange(7, 12)
    np.testing.assert_allclose(data.entropy, np.log(queries + 1).mean(), atol=1e-12)
    np.testing.assert_allclose(data.profile, (1 / (queries + 1)).mean(), atol=1e-12)
    np.testing.assert_allclose(data.previous.sel(window=4), 4 * data.first_token, atol=1e-12)
    assert data.previous.window.values.tolist() == [1, 2, 4, 5]


def test_all_together_run_the_clean_pass_and_two_blocks_a_swap(family):
    net = tiny(family)
    model = open_model(net)
    calls: Counter = Counter()
    for block in net.get_submodule(BLOCKS[family]):
        block.register_forward_hook(lambda *_: calls.update(["block"]))
        for name, part in block.named_children():
            if "Attention" in type(part).__name__ or "MLP" in type(part).__name__:
                part.register_forward_hook(lambda *_, name=name: calls.update([name]))

    def counted(sequences):
        calls.clear()
        observe(model, corpus(sequences), (*ALL, "cka"), RunOptions(batch_tokens=16 * 12))
        return Counter(calls)

    counted(16)  # the first time, the model is examined too
    once, twice = counted(16), counted(32)
    per_batch = {name: twice[name] - once[name] for name in once}
    assert per_batch.pop("block") == LAYERS
    assert set(per_batch.values()) == {LAYERS + 2 * (LAYERS - 1)}


@pytest.mark.slow
def test_a_killed_or_interrupted_run_goes_on(gpt2, tmp_path):
    text = corpus(sequences=40)
    whole = observe(gpt2, text, (*ALL, "cka"), RunOptions(batch_tokens=48))
    seen = []

    def stop(done, _total):
        seen.append(done)
        if done == 28:
            raise KeyboardInterrupt

    options = {"batch_tokens": 48, "out": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        observe(gpt2, text, (*ALL, "cka"), RunOptions(progress=stop, **options))
    names = {"lens", "attention", "norms", "similarity", "cka"}
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}.partial.nc" for name in names}
    partial = netcdf.load(tmp_path / "cka.partial.nc")
    assert partial.sequences_done == 16, "only whole batches of CKA count"
    assert measured_sequences(partial).sizes["batch"] == 1
    assert measured_sequences(netcdf.load(tmp_path / "lens.partial.nc")).sizes["sequence"] == 28
    resumed = observe(gpt2, text, (*ALL, "cka"), RunOptions(**options))
    for name, data in whole.items():
        xr.testing.assert_equal(data, resumed[name])
        xr.testing.assert_equal(data, netcdf.load(tmp_path / f"{name}.nc"))
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}.nc" for name in names}
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    observe(gpt2, text, (*ALL, "cka"), RunOptions(**options))
    assert stamps == {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}


def test_a_file_explains_itself(gpt2, tmp_path):
    observe(gpt2, corpus(sequences=16), (*ALL, "cka"), RunOptions(out=tmp_path))
    for name in ("lens", "attention", "norms", "similarity", "cka"):
        data = netcdf.load(tmp_path / f"{name}.nc")
        assert data.attrs["measurement"] == name and data.attrs["corpus_sha256"]
        for variable in data.data_vars.values():
            assert variable.attrs["units"] and variable.attrs["long_name"]
        for dim in data.dims:
            assert dim in data.coords, dim
    assert netcdf.load(tmp_path / "lens.nc").kl.dims == ("lens", "depth", "sequence")


def test_a_measurement_of_ones_own_is_a_function_and_a_record(strict_model, plain, tmp_path):
    def largest(captured, text):
        return {"largest": capture.token_mean(captured["residual"].abs().amax(-1), text)}

    metric = Metric("largest", "1", "largest feature of the residual stream")
    own = Measurement("largest", {metric: ("depth", "sequence")}, largest, final=True)
    text = corpus()
    data = observe(strict_model, text, (own, "norms"), RunOptions(out=tmp_path))["largest"]
    seen = reference.run(plain, torch.from_numpy(text.tokens))
    states = torch.stack([*seen["in"], *seen["final"]])
    expected = states.abs().amax(-1)[:, :, 1:-1].mean(-1)
    np.testing.assert_allclose(data.largest, expected, atol=1e-12)
    assert netcdf.load(tmp_path / "largest.nc").largest.attrs["units"] == "1"


def test_one_that_was_changed_is_not_gone_on_with(gpt2, tmp_path):
    metric = Metric("number", "1", "a number")

    def one(captured, text):
        return {"number": torch.ones(len(captured["residual"]))}

    def two(captured, text):
        return {"number": 2 * torch.ones(len(captured["residual"]))}

    first = Measurement("number", {metric: ("layer", "sequence")}, one)
    observe(gpt2, corpus(), (first,), RunOptions(out=tmp_path))
    observe(gpt2, corpus(), (first,), RunOptions(out=tmp_path))
    with pytest.raises(Refusal, match="with another function or record of its measurement"):
        observe(gpt2, corpus(), (replace(first, measure=two),), RunOptions(out=tmp_path))
    other = replace(first, variables={Metric("other", "1", "another"): ("layer", "sequence")})
    with pytest.raises(Refusal, match="number gives number; its variables are other"):
        observe(gpt2, corpus(), (other,))


@pytest.mark.slow
def test_half_precision_reaches_a_measurement_of_ones_own():
    def size(captured, text):
        return {"size": capture.token_mean(captured["residual"].square().sum(-1), text)}

    own = Measurement("size", {Metric("size", "1", "size"): ("layer", "sequence")}, size)
    model = open_model(tiny("gpt2").to(torch.bfloat16))
    assert observe(model, corpus(), (own,))["size"].size.dtype == np.float32


def test_a_refused_call_leaves_nothing_in_the_way(gpt2, tmp_path):
    observe(gpt2, corpus(), ("norms",), RunOptions(out=tmp_path))
    with pytest.raises(Refusal, match="sequences"):
        observe(gpt2, corpus(sequences=6), ("lens", "norms"), RunOptions(out=tmp_path))
    observe(gpt2, corpus(), ("lens", "norms"), RunOptions(out=tmp_path))
    assert {file.name for file in tmp_path.iterdir()} == {"lens.nc", "norms.nc"}


REFUSED = {
    "unknown": (("lense",), {}, "no measurement 'lense'; there are: lens, cka, attention"),
    "short": (("attention",), {}, "attention takes sequences of at least 34 tokens.*`context`"),
    "few": (("cka",), {}, "cka takes at least 16 sequences, and there are 5.*`tokens`"),
    "twice": (("lens", "lens"), {}, "two measurements are called 'lens'"),
    "documents": (("attention",), {"lengths": [12, 9, 12, 12, 12]}, "has 9: take windows instead"),
    "lengths": (
        ("cka",),
        {"sequences": 16, "lengths": [12, 9] * 8},
        "sequences of one length: take windows",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_refused(gpt2, case):
    wanted, options, message = REFUSED[case]
    with pytest.raises(Refusal, match=message):
        observe(gpt2, corpus(**options), wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_model_whose_sublayers_do_not_add_up_is_read_without_them(dtype):
    class OddLayer(LlamaDecoderLayer):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs) * 1.5

    net = tiny("llama").to(dtype)
    for block in net.model.layers:
        block.__class__ = OddLayer
    model = open_model(net)
    assert observe(model, corpus(), ("lens",))["lens"].kl.notnull().all()
    with pytest.raises(Refusal, match=r"norms cannot be measured: .*attention and MLP, added to"):
        observe(model, corpus(), ("norms",))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_norm_that_is_none_is_refused_for_the_lens(dtype):
    class OddNorm(torch.nn.Module):
        def forward(self, hidden_states):
            return hidden_states.tanh()

    net = tiny("llama").to(dtype)
    net.model.norm = OddNorm()
    with pytest.raises(Refusal, match=r"lens cannot be measured: .*neither a layer nor a root"):
        observe(open_model(net), corpus(), ("lens",))


def test_half_precision_is_measured_in_float32(family):
    text = corpus(sequences=16)
    net = tiny(family).to(torch.bfloat16)
    found = observe(open_model(net), text, (*ALL, "cka"))
    exact = observe(open_model(copy.deepcopy(net).double()), text, (*ALL, "cka"))
    for name in ("attention", "norms", "similarity", "lens", "cka"):
        for variable, values in found[name].data_vars.items():
            assert values.dtype == (np.float64 if name == "cka" else np.float32)
            if variable not in {"hsic", "cka_standard_error", "agreement", "accuracy"}:
                difference = abs(values - exact[name][variable]).mean()
                assert difference < 0.06 * abs(exact[name][variable]).mean() + 0.02, variable


def test_what_is_known_by_name_is_listed_with_its_units():
    for name, measurement in MEASUREMENTS.items():
        assert measurement.name == name
        for metric, dims in measurement.variables.items():
            assert metric.unit in {"1", "nat"} and dims[-1] in {"sequence", "batch"}


def test_what_was_taken_at_every_depth_is_on_one_device_when_it_is_put_together():
    """Sums in float64 are on the CPU; the device of this model has no data at all."""
    residual = torch.zeros(2, 5, 8, device="meta")
    part = SimpleNamespace(inputs=((residual,), {}), input=residual, skip=lambda _: None)
    parts = {"blocks": [part, part], "norms": [], "head": part}
    seen = []

    def finish(taken, _parts, _text):
        seen.extend(each["mean"].device.type for each in taken)
        return {}

    measure = lambda captured, text: {"mean": torch.zeros(2)}  # noqa: E731
    capture.walk([(measure, finish, True)], (), parts, {})
    assert seen == ["meta"] * 3


def test_a_measurement_that_fails_is_found_and_the_others_are_not_blamed(gpt2):
    def fails(captured, text):
        raise RuntimeError("sizes must match")

    broken = replace(MEASUREMENTS["similarity"], measure=fails, finish=None)
    found = unfit(gpt2, corpus(), ("lens", "norms", broken))
    assert found.keys() == {"similarity"}
    assert found["similarity"].startswith("similarity cannot be measured: GPT2LMHeadModel")
    assert found["similarity"].endswith("sizes must match")


SMALL_NORMS = {"olmo": 1e-5, "llama": 1e-6, "gpt2": 1e-5, "nemotron": 1e-5}


@pytest.mark.parametrize("name", SMALL_NORMS)
def test_the_frozen_lens_of_a_small_stream_knows_what_norms_add(name):
    net = tiny(name)
    with torch.no_grad():
        # So small that what the norm adds to the mean square counts at every depth.
        for path, parameter in net.named_parameters():
            if "emb" in path or "wte" in path or "wpe" in path:
                parameter *= 1e-3
            if any(part in path for part in ("o_proj", "c_proj", "down_proj")):
                parameter *= 1e-3
    model = open_model(copy.deepcopy(net))
    assert examine(model).epsilon == SMALL_NORMS[name]
    text = corpus()
    data = observe(model, text, ("lens",))["lens"]
    for variable, values in reference.lens(net, torch.from_numpy(text.tokens)).items():
        np.testing.assert_allclose(data[variable], values, atol=1e-6, rtol=1e-6)


def test_a_norm_whose_epsilon_follows_from_its_type_is_measured():
    net = tiny("llama", torch.float32)
    net.model.norm = torch.nn.RMSNorm(32)
    found = examine(open_model(net)).epsilon
    assert found == pytest.approx(torch.finfo(torch.float32).eps, rel=1e-4)
