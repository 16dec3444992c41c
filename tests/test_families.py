"""Every family, on a tiny model of it: opening, schedules and measurements, in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from alike import MEASURED, SWEPT, measured, one_of_each, swept
from families import DEEP, LAYERS, SPECS, config, random_tokens, rebuilt, tiny
from oracles import plain as reference
from strict import StrictBackend
from test_execution import assert_equals_surgery, corpus
from test_observation import LOCAL
from tokenizers_for_tests import word_level
from transformers import AutoConfig, AutoModelForCausalLM

from robustness.errors import Refusal
from robustness.measurements.observation import observe
from robustness.measurements.prediction_neurons import moments, neurons
from robustness.measurements.requirements import unfit
from robustness.models.block_structure import examine
from robustness.models.facts import Facts
from robustness.models.opening import open_model
from robustness.models.structure import find_paths
from robustness.runs.settings import RunOptions
from robustness.schedules import clean, drop, repeat, swap
from robustness.schedules.interventions import schedules
from robustness.sweeps import rewire, sweep

OTHERS = sorted(set(SPECS) - set(DEEP))

INTERVENTIONS = ("drop", "swap", "repeat-2")

EVERYTHING = ("lens", LOCAL, "norms", "similarity")

UNFIT = {
    "falcon": {"attention"},
    "falcon-alibi": {"attention"},
    "falcon-new": {"attention"},
    "gemma4": {"norms", "similarity"},
    "mamba": {"attention", "norms", "similarity"},
    "openai-gpt": {"attention", "norms", "similarity"},
    "opt-350m": {"norms", "similarity"},
}
"""What is refused of a family, of what there is."""


@pytest.fixture(scope="module", params=OTHERS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def plain(family):
    return tiny(family)


every_swept = pytest.mark.parametrize("family", one_of_each(SWEPT), indirect=True)
every_measured = pytest.mark.parametrize("family", one_of_each(MEASURED), indirect=True)


@pytest.fixture(scope="module")
def model(family):
    return open_model(tiny(family))


def behind_a_server(model):
    return replace(model, request={"backend": StrictBackend(model.traced)}, facts=Facts())


def test_a_family_is_as_those_that_are_tried_in_its_place(family, model):
    (of_sweeps,) = [alike for alike, families in SWEPT.items() if family in families]
    (of_measurements,) = [alike for alike, families in MEASURED.items() if family in families]
    assert swept(model) == of_sweeps
    assert measured(model) == of_measurements


def test_families_of_which_everything_is_tested_are_alike_to_what_they_stand_for():
    for family in DEEP:
        model = open_model(tiny(family))
        assert family in SWEPT[swept(model)] and family in MEASURED[measured(model)]


def test_drop_swap_and_repeat_are_surgery_on_the_plain_model(model, plain):
    tokens, whole = random_tokens(3, 11), clean(LAYERS)
    with torch.no_grad():
        before = plain(tokens, use_cache=False).logits
    for schedule in (drop(whole, 1), swap(whole, 0), swap(whole, 2), repeat(whole, 1, 2), (3, 3)):
        edited = rewire(model, schedule)
        with torch.no_grad(), edited.trace(tokens):
            logits = edited.output.logits.save()
        with torch.no_grad():
            expected = rebuilt(plain, schedule)(tokens, use_cache=False).logits
        torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)
        assert (expected - before).abs().max() > 0.1, "the schedule changes nothing"


@every_swept
@pytest.mark.slow
def test_a_sweep_is_log_softmax_of_the_rebuilt_models_logits(model, plain):
    text, named = corpus(), schedules(INTERVENTIONS, LAYERS)
    data = sweep(model, text, INTERVENTIONS, batch_tokens=36, state_cap=3)
    assert_equals_surgery(data, plain, named, text)


@every_swept
@pytest.mark.slow
def test_through_the_strict_backend_it_is_the_same(model, plain):
    text, named = corpus(), schedules(INTERVENTIONS, LAYERS)
    data = sweep(behind_a_server(model), text, INTERVENTIONS, batch_tokens=36, state_cap=3)
    assert_equals_surgery(data, plain, named, text)


@every_measured
@pytest.mark.slow
def test_what_can_be_measured_equals_plain_transformers(family, model, plain):
    text = corpus()
    assert set(unfit(model, text, ("lens", "norms", "similarity"))) == UNFIT.get(family, set()) - {
        "attention"
    }
    wanted = [
        each
        for each in EVERYTHING
        if (each if isinstance(each, str) else each.name) not in UNFIT.get(family, ())
    ]
    tokens, expected = torch.from_numpy(text.tokens), {}
    for name in wanted:
        if name == LOCAL:
            eager = tiny(family, attention="eager")
            expected["attention"] = reference.attention(eager, tokens, 6)
        elif name == "similarity":
            expected[name] = {"cosine": reference.similarity(plain, tokens)}
        else:
            expected[name] = getattr(reference, name)(plain, tokens)
    for opened in (model, behind_a_server(model)):
        found = observe(opened, text, wanted, RunOptions(batch_tokens=36))
        assert found.keys() == expected.keys()
        for name, data in found.items():
            assert set(data.data_vars) - {"previous"} == set(expected[name])
            limit = {"attention": 1e-5, "lens": 1e-6}.get(name, 1e-9)
            for variable, values in expected[name].items():
                np.testing.assert_allclose(
                    data[variable], values, atol=limit, rtol=limit, err_msg=f"{name} {variable}"
                )


def test_what_cannot_be_measured_is_refused_with_a_reason(family, model):
    for name in UNFIT.get(family, ()):
        with pytest.raises(Refusal, match=f"{name} cannot be measured: ") as refused:
            observe(model, corpus(length=32), (LOCAL if name == "attention" else name,))
        assert "\n" not in str(refused.value)


def test_how_blocks_and_logits_are_put_together_is_measured(family, model, plain):
    found = examine(model)
    assert found.centres == reference.centred(plain)
    if "norms" not in UNFIT.get(family, ()):
        assert found.parallel == (family in reference.PARALLEL)
        assert set(found.factors) == {(reference.FACTOR.get(family, 1.0),) * 2}
    numbers = torch.tensor([-3.0, 0.0, 0.5, 7.0], dtype=torch.float64)
    scale, cap = model.squash
    squashed = numbers * scale if cap is None else cap * torch.tanh(numbers * scale / cap)
    torch.testing.assert_close(
        squashed, reference.SQUASHED.get(family, lambda logits: logits)(numbers)
    )


@pytest.mark.slow
def test_parts_are_found_without_weights_as_with_them(family, plain):
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(config(family))
    assert find_paths(bare) == find_paths(plain)


def test_in_half_precision_it_opens_and_is_put_together_alike(family, model):
    net = tiny(family).to(torch.bfloat16)
    if family == "mamba":
        # Its residual stream is float32 whatever its weights are, which its head does not take.
        with pytest.raises(Refusal, match="same dtype"):
            open_model(net)
        return
    found = open_model(net)
    assert found.squash == pytest.approx(model.squash)
    assert examine(found).parallel == examine(model).parallel
    assert np.allclose(examine(found).factors, examine(model).factors)


@pytest.mark.parametrize("name", ["bloom", "falcon-new", "gemma2", "opt-350m"])
def test_a_directory_opens_with_the_attention_that_the_family_has(name, tmp_path):
    tiny(name, torch.float32).save_pretrained(tmp_path)
    word_level(101).save_pretrained(tmp_path)
    expected = "eager" if name in {"bloom", "gemma2"} else "sdpa"
    assert open_model(tmp_path).identity["attention"] == expected


def test_with_eager_attention_falcon_hands_over_its_weights():
    net, text = tiny("falcon", attention="eager"), corpus()
    data = observe(open_model(tiny("falcon", attention="eager")), text, (LOCAL,))["attention"]
    expected = reference.attention(net, torch.from_numpy(text.tokens), 6)
    np.testing.assert_allclose(data.profile, expected["profile"], atol=1e-5)


@pytest.mark.parametrize("name", ["opt", "opt-projected"])
def test_neurons_write_to_the_vocabulary_through_a_projection(name):
    net, data = tiny(name), neurons(tiny(name))
    matrix, decoder = net.lm_head.weight.detach(), net.model.decoder
    if name == "opt-projected":
        matrix = matrix @ decoder.project_out.weight.detach()
    matrix = matrix * decoder.final_layer_norm.weight.detach()
    matrix = matrix - matrix.mean(1, keepdim=True)
    matrix = matrix - matrix.mean(0)
    for layer, block in enumerate(decoder.layers):
        written = block.fc2.weight.detach().T
        written = written - written.mean(1, keepdim=True)
        units = (each / each.norm(dim=1, keepdim=True) for each in (written, matrix))
        for name, values in zip(
            ("cosine_mean", "cosine_variance", "cosine_skewness", "cosine_kurtosis"),
            moments(*units),
            strict=True,
        ):
            np.testing.assert_allclose(data[name][layer], values, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo2", "olmo3", "glm4", "exaone4"])
def test_neurons_behind_a_norm_are_refused(name):
    with pytest.raises(Refusal, match="puts a norm between MLP and residual stream"):
        neurons(tiny(name))


_SHARING = {
    "vocab_size": 101, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 5,
    "max_position_embeddings": 32, "vocab_size_per_layer_input": 101, "global_head_dim": 8,
    "hidden_size_per_layer_input": 8, "initializer_range": 0.4, "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "pad_token_id": 0,
}  # fmt: skip

REFUSED = {
    "gemma4": ("gemma4_text", _SHARING, r"its blocks share what they keep: what block \d gives"),
    "gemma3n": (
        "gemma3n_text",
        {**_SHARING, "altup_num_inputs": 2, "laurel_rank": 4,
         "activation_sparsity_pattern": [0.0] * 4},
        r"of shape \[2, 2, 7\] and not \(sequence, token, width\)",
    ),
    "mllama": (
        "mllama_text_model",
        {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2, "cross_attention_layers": [1],
         "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0},
        "its blocks are not called once each, in order",
    ),
    "nanochat": (
        "nanochat",
        {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 4},
        "model.norm, which reads the last residual stream, is called elsewhere too",
    ),
    "minicpm3": (
        "minicpm3",
        {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8,
         "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "head_dim": 4,
         "initializer_range": 0.4, "dim_model_base": 8},
        "run block by block are off by",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_rewired_is_refused_in_one_line(name):
    kind, settings, reason = REFUSED[name]
    made = AutoConfig.for_model(kind, **settings)
    torch.manual_seed(1)
    if kind == "mllama_text_model":
        from transformers import MllamaForCausalLM

        net = MllamaForCausalLM(made)
    else:
        net = AutoModelForCausalLM.from_config(made)
    with pytest.raises(Refusal, match=reason) as refused:
        open_model(net)
    assert "\n" not in str(refused.value)


def test_quantised_weights_are_refused(tmp_path):
    made = config("llama")
    made.quantization_config = {"quant_method": "gptq", "bits": 4}
    made.save_pretrained(tmp_path)
    for use in (open_model, neurons):
        with pytest.raises(Refusal, match=r"quantised weights \(gptq\)"):
            use(tmp_path)
    net = tiny("llama", torch.float32)
    net.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(Refusal, match=r"quantised weights \(gptq\)"):
        open_model(net)
