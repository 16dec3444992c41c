"""Settings of a model: what goes together, and what is refused by the name of the setting."""

from dataclasses import FrozenInstanceError, fields
from inspect import signature

import pytest

from robustness.errors import Refusal
from robustness.models import ModelSettings, open_model, open_settings


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"remote": True, "dtype": "bfloat16"}, "leave out `dtype`"),
        ({"remote": True, "device": "cpu"}, "leave out `device`"),
        ({"remote": True, "device_map": "auto"}, "leave out `device_map`"),
        ({"remote": True, "attention": "eager"}, "leave out `attention`"),
        ({"offload": "here"}, "`offload` goes with `device_map`"),
        ({"host": "http://127.0.0.1:1"}, "go with `remote`"),
        ({"deploy": True}, "go with `remote`"),
        ({"sandbox_limit": 1.0}, "go with `remote`"),
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
