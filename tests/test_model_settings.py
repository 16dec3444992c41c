"""Settings of a model: what goes together, and what is refused by the name of the setting."""

from dataclasses import FrozenInstanceError, fields
from inspect import signature

import pytest
import torch
from families import tiny
from tokenizers_for_tests import word_level

from robustness.errors import Refusal
from robustness.models import ModelSettings, open_model, open_settings, placement


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"remote": True, "dtype": "bfloat16"}, "leave out `dtype`"),
        ({"remote": True, "device": "cpu"}, "leave out `device`"),
        ({"remote": True, "device_map": "auto"}, "leave out `device_map`"),
        ({"remote": True, "attention": "eager"}, "leave out `attention`"),
        ({"offload": "here"}, "`offload` goes with `device_map`"),
        ({"host": "http://127.0.0.1:1"}, "takes `host`: ask for `remote` too"),
        ({"deploy": True}, "takes `deploy`: ask for `remote` too"),
        ({"sandbox_limit": 1.0}, "takes `sandbox_limit`: ask for `remote` too"),
        ({"request_gb": 1.0, "patience": 1}, "takes `patience` and `request_gb`"),
        ({"remote": True, "patience": float("inf")}, "`patience` must be a number of 0 or more"),
        ({"remote": True, "compile": True}, "leave out `compile`"),
        ({"remote": True, "maps": "maps.safetensors"}, "leave out `maps`"),
        ({"device_map": "auto", "compile": True}, "leave out `device_map` or `compile`"),
        ({"device_map": "auto", "device": "cpu"}, "leave out `device`"),
        ({"dtype": "int8"}, "no dtype 'int8'; there are: float32"),
        ({"attention": "somebody/kernels"}, "no attention 'somebody/kernels'; there are: sdpa"),
        ({"device_map": "gpu"}, "no device map 'gpu'; there are: auto"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_opened(given, problem):
    with pytest.raises(Refusal, match=problem):
        ModelSettings("nowhere", **given)


def test_settings_stay_as_they_are():
    settings = ModelSettings("builtin")
    with pytest.raises(FrozenInstanceError):
        settings.dtype = "float64"


def test_a_model_is_opened_alike_by_settings_and_by_keywords(llama):
    by_settings = open_settings(ModelSettings(llama, dtype="float64"))
    assert by_settings.identity == open_model(llama, dtype="float64").identity
    keywords = signature(open_model).parameters
    for field in fields(ModelSettings):
        assert field.name in keywords
        if field.name != "source":
            assert keywords[field.name].default == field.default


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", "float32"), ("cuda", "auto"), ("cuda:1", "auto"), ("mps", "auto")]
)
def test_weights_keep_the_checkpoints_type_where_a_gpu_computes(device, dtype):
    assert placement.usual_dtype(device) == dtype


@pytest.mark.parametrize(
    ("device_map", "gpu", "device"),
    [
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("disk", True, "cpu"),
        ({"lm_head": "cpu", "model": 1}, True, "cuda:1"),
        ({"lm_head": "cpu", "model": "disk"}, True, "cpu"),
    ],
)
def test_a_device_map_computes_where_its_weights_are(monkeypatch, device_map, gpu, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert placement.computing(device_map) == device


def test_a_model_that_does_not_open_in_its_own_type_is_refused_with_another(monkeypatch, tmp_path):
    tiny("mamba", torch.bfloat16).save_pretrained(tmp_path)
    word_level(101).save_pretrained(tmp_path)
    monkeypatch.setattr(placement, "usual_dtype", lambda device: "auto")
    with pytest.raises(Refusal, match="its weights are bfloat16: try `dtype` float32"):
        open_settings(ModelSettings(tmp_path))
    assert open_settings(ModelSettings(tmp_path, dtype="float32")).layers == 4


def test_a_type_that_was_not_asked_for_is_told(monkeypatch, tmp_path):
    tiny("llama", torch.bfloat16).save_pretrained(tmp_path)
    word_level(101).save_pretrained(tmp_path)
    said = []
    assert open_settings(ModelSettings(tmp_path), said.append).identity["dtype"] == "float32"
    assert not said
    monkeypatch.setattr(placement, "usual_dtype", lambda device: "auto")
    assert open_settings(ModelSettings(tmp_path), said.append).identity["dtype"] == "bfloat16"
    assert len(said) == 1 and "weights stay bfloat16" in said[0] and "float32" in said[0]
    chosen = ModelSettings(tmp_path, dtype="float32")
    assert open_settings(chosen, said.append).identity["dtype"] == "float32" and len(said) == 1
