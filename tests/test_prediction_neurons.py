import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr
from families import LAYERS, tiny
from tokenizers_for_tests import word_level
from transformers import AutoConfig, AutoModelForCausalLM

from recipes.views import draw, table
from robustness.errors import Refusal
from robustness.files import netcdf
from robustness.measurements.prediction_neurons import (
    MOMENTS,
    NeuronSettings,
    classify,
    moments,
    neurons,
)
from robustness.models.opening import open_model
from robustness.models.output_weights import open_weights
from robustness.models.weight_processing import process
from robustness.runs.settings import RunOptions

DOWN = {"gpt2": "c_proj", "gpt_neox": "dense_4h_to_h", "phi": "fc2"}


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def expected(family):
    """Moments by scipy of the weights of the processed model."""
    net = process(open_model(tiny(family)))
    unembedding = unit(net.get_output_embeddings().weight.detach().numpy())
    found = []
    for path, part in net.named_modules():
        if path.endswith(f"mlp.{DOWN.get(family, 'down_proj')}"):
            written = part.weight.detach().numpy()
            cosines = unit(written if family == "gpt2" else written.T) @ unembedding.T
            found.append(
                [
                    cosines.mean(1),
                    cosines.var(1),
                    scipy.stats.skew(cosines, axis=1),
                    scipy.stats.kurtosis(cosines, axis=1, fisher=False),
                ]
            )
    return np.array(found)


def test_moments_are_scipys_of_the_processed_weights(family):
    data = neurons(tiny(family))
    values = expected(family)
    assert values.shape[0] == LAYERS
    for index, metric in enumerate(MOMENTS):
        assert data[metric.name].dims == ("layer", "neuron")
        np.testing.assert_allclose(data[metric.name], values[:, index], rtol=2e-4, atol=2e-5)
    assert data.attrs["gated"] == (family in {"llama", "qwen2"})


def test_weights_from_a_directory_are_those_of_the_module(family, tmp_path):
    net = tiny(family, torch.float32)
    net.save_pretrained(tmp_path / "net")
    word_level(101).save_pretrained(tmp_path / "net")
    saved, here = neurons(tmp_path / "net"), neurons(net)
    for metric in MOMENTS:
        np.testing.assert_array_equal(saved[metric.name], here[metric.name])
    assert saved.attrs["model"] == "net" and saved.attrs["weights_sha256"]


def test_only_the_weights_that_are_needed_are_read(family, tmp_path, monkeypatch):
    from robustness.models.tensor_files import Tensors

    net = tiny(family, torch.float32)
    net.save_pretrained(tmp_path / "net", max_shard_size="20KB")
    word_level(101).save_pretrained(tmp_path / "net")
    assert len(list((tmp_path / "net").glob("*.safetensors"))) > 1
    read, get = [], Tensors.__getitem__
    monkeypatch.setattr(Tensors, "__getitem__", lambda self, n: read.append(n) or get(self, n))
    neurons(tmp_path / "net")
    assert not [name for name in read if "attn" in name or "attention" in name]
    assert len(set(read)) <= LAYERS + 3


@pytest.mark.parametrize(
    ("kind", "kurtosis", "skew"),
    [("normal", 3, 0), ("spike", 97, 1), ("dip", 97, -1), ("two", 1, 0)],
)
def test_the_shape_of_a_distribution_is_told(kind, kurtosis, skew):
    torch.manual_seed(0)
    width, tokens = 4, 100
    if kind == "normal":
        unembedding = torch.randn(20_000, 400)
        unembedding /= unembedding.norm(dim=1, keepdim=True)
        written = torch.randn(1, 400)
        written /= written.norm()
    else:
        unembedding = torch.zeros(tokens, width)
        written = torch.tensor([[1.0, 0, 0, 0]])
        unembedding[:, 1] = 1
        if kind == "two":
            unembedding[:] = 0
            unembedding[::2, 0], unembedding[1::2, 0] = 1, -1
        else:
            unembedding[0] = torch.tensor([1.0 if kind == "spike" else -1.0, 0, 0, 0])
    _, _, third, fourth = moments(written, unembedding)[:, 0]
    assert fourth == pytest.approx(kurtosis, rel=0.05)
    assert np.sign(round(float(third), 1)) == skew


def test_classes_are_strict_and_follow_the_sign_of_the_skew():
    shape = ("layer", "neuron")
    data = xr.Dataset(
        {
            "cosine_kurtosis": (shape, [[10.0, 10.1, 11.0, np.nan]]),
            "cosine_skewness": (shape, [[1.0, 1.0, -1.0, np.nan]]),
            "cosine_variance": (shape, [[0.005, 0.006, 0.0, np.nan]]),
        }
    )
    found = classify(data)
    assert found.sel(neuron_class="prediction").values.tolist() == [[False, True, False, False]]
    assert found.sel(neuron_class="suppression").values.tolist() == [[False, False, True, False]]
    assert found.sel(neuron_class="partition").values.tolist() == [[False, True, False, False]]
    assert classify(data, kurtosis=20).sel(neuron_class="prediction").sum() == 0


def test_a_neuron_that_writes_nothing_has_no_moments():
    net = tiny("gpt2")
    torch.nn.init.zeros_(net.transformer.h[1].mlp.c_proj.weight[3])
    data = neurons(net)
    assert np.isnan(data.cosine_kurtosis.sel(layer=1, neuron=3))
    assert data.cosine_kurtosis.isnull().sum() == 1 and data.share.notnull().all()


REAL = NeuronSettings(real_vocabulary=True)


@pytest.mark.slow
def test_rows_that_pad_the_vocabulary_are_left_out_on_request(tmp_path):
    net = tiny("llama", torch.float32)
    net.save_pretrained(tmp_path / "net")
    word_level(60).save_pretrained(tmp_path / "net")
    tokens = open_weights(tmp_path / "net").tokens
    assert tokens < 101
    real, every = neurons(tmp_path / "net", REAL), neurons(tmp_path / "net")
    assert abs(real.cosine_kurtosis - every.cosine_kurtosis).max() > 0.01
    head, gain = (
        net.lm_head.weight[:tokens].detach().numpy(),
        net.model.norm.weight.detach().numpy(),
    )
    unembedding = unit(head * gain - (head * gain).mean(0))
    cosines = unit(net.model.layers[1].mlp.down_proj.weight.detach().numpy().T) @ unembedding.T
    kurtosis = scipy.stats.kurtosis(cosines, axis=1, fisher=False)
    np.testing.assert_allclose(real.cosine_kurtosis.sel(layer=1), kurtosis, rtol=1e-3)
    assert real.vocabulary == "real tokens"
    with pytest.raises(Refusal, match="has no tokenizer to tell which tokens are real"):
        neurons(net, REAL)


def test_a_norm_after_the_mlp_is_refused():
    with pytest.raises(Refusal, match="puts a norm between MLP and residual stream"):
        neurons(tiny("olmo2"))


def test_an_unfinished_file_is_not_shown(tmp_path):
    def stop(done, _total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        neurons(tiny("gpt2"), options=RunOptions(out=tmp_path / "neurons.nc", progress=stop))
    partial = netcdf.load(tmp_path / "neurons.partial.nc")
    for shown in (table, draw):
        with pytest.raises(Refusal, match="the run is unfinished"):
            shown(partial)


def test_it_saves_resumes_and_refuses_other_settings(tmp_path):
    path = tmp_path / "neurons.nc"
    net = tiny("gpt2")

    def stop(done, _total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        neurons(net, options=RunOptions(out=path, progress=stop))
    assert netcdf.load(tmp_path / "neurons.partial.nc").sequences_done == 2
    data = neurons(net, options=RunOptions(out=path))
    xr.testing.assert_equal(data, neurons(net))
    xr.testing.assert_equal(data, netcdf.load(path))
    with pytest.raises(Refusal, match=r"made with kurtosis_threshold 10\.0, not 3"):
        neurons(net, NeuronSettings(kurtosis=3), RunOptions(out=path))


def test_a_head_that_is_not_linear_is_refused():
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "modernbert-decoder", vocab_size=101, hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=32, pad_token_id=0,
        bos_token_id=0, eos_token_id=0, cls_token_id=0, sep_token_id=0,
    )  # fmt: skip
    with pytest.raises(Refusal, match=r"PredictionHead.* stands between the last block and the"):
        neurons(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("between", [torch.nn.Tanh(), torch.nn.GELU()], ids=str)
def test_whatever_is_neither_norm_nor_matrix_is_refused(between):
    net = tiny("gpt2", torch.float32)
    net.transformer.ln_f = between
    with pytest.raises(Refusal, match=f"{type(between).__name__}.* stands between the last block"):
        neurons(net)
