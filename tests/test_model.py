import copy
import json

import numpy as np
import pytest
import torch
from families import DEEP, LAYERS, tiny
from test_execution import corpus
from tokenizers_for_tests import word_level
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    MptConfig,
    T5Config,
)

from robustness.errors import Refusal
from robustness.models.opening import open_model
from robustness.sweeps import sweep


def test_every_family_opens_from_a_directory(tmp_path, family):
    tiny(family, torch.float32).save_pretrained(tmp_path)
    word_level(101).save_pretrained(tmp_path)
    assert open_model(tmp_path).layers == LAYERS


@pytest.fixture
def saved(tmp_path):
    tiny("llama", torch.float32).save_pretrained(tmp_path / "tiny-llama")
    word_level(101).save_pretrained(tmp_path / "tiny-llama")
    return tmp_path / "tiny-llama"


def test_the_parts_of_every_family_are_found(model, family):
    assert model.layers == LAYERS == len(model.attentions) == len(model.sublayers)
    assert model.vocabulary == 101 and model.context == 32
    assert model.head._module is model.traced._module.get_output_embeddings()
    assert "Norm" in type(model.norms[0]._module).__name__
    for index, block in enumerate(model.blocks):
        (_, attention, *_), (_, mlp, *_) = model.sublayers[index]
        assert attention is model.attentions[index]
        assert {attention._module, mlp._module} <= set(block._module.children())
    assert model.identity["architecture"].lower().startswith(family.replace("_", "")[:4])


def test_a_model_is_described_in_a_line(saved):
    model = open_model(saved)
    told = repr(model)
    assert "\n" not in told and len(told) < 120
    for fact in (model.name, "ForCausalLM", "4 layers", f"width {model.width}", "float32", "cpu"):
        assert fact in told


def test_a_directory_opens_and_is_named_hashed_and_placed(saved):
    model = open_model(saved)
    assert model.identity == {
        "model": "tiny-llama",
        "revision": "",
        "weights_sha256": model.identity["weights_sha256"],
        "config_sha256": model.identity["config_sha256"],
        "architecture": "LlamaForCausalLM",
        "dtype": "float32",
        "device": "cpu",
        "attention": "sdpa",
        "processing": "none",
    }
    assert len(model.identity["weights_sha256"]) == 64
    assert model.tokenizer.bos_token == "<s>"
    with torch.no_grad():
        torch.manual_seed(0)
        other = tiny("llama", torch.float32)
        other.model.norm.weight[0] += 1
    other.save_pretrained(saved)
    changed = open_model(saved)
    assert changed.identity["weights_sha256"] != model.identity["weights_sha256"]
    assert changed.identity["config_sha256"] == model.identity["config_sha256"]
    edit_config(saved, rms_norm_eps=0.1)
    assert open_model(saved).identity["config_sha256"] != model.identity["config_sha256"]


def edit_config(path, **changes):
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_checkpoint_that_lacks_weights_is_refused_and_not_filled_up(saved):
    edit_config(saved, num_hidden_layers=5)
    with pytest.raises(Refusal, match=r"9 of the weights .* not in the checkpoint, model.layers.4"):
        open_model(saved)
    edit_config(saved, num_hidden_layers=4, intermediate_size=32)
    with pytest.raises(Refusal, match="tiny-llama cannot be loaded"):
        open_model(saved)


@pytest.mark.parametrize("damage", ["cut", "garbage", "activation"])
def test_a_damaged_checkpoint_is_refused_in_one_line(saved, damage):
    weights = saved / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "garbage":
        weights.write_bytes(b"garbage" * 100)
    else:
        edit_config(saved, hidden_act="nothing")
    with pytest.raises(Refusal, match="tiny-llama cannot be loaded") as refused:
        open_model(saved)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("sequences", [1, 2, 3, 4, 5])
def test_a_context_with_a_tensor_as_long_as_the_batch_is_not_taken_for_batched(sequences):
    """MPT's ALiBi has a row for each of its four heads."""
    config = MptConfig(d_model=16, n_heads=4, n_layers=3, vocab_size=101, max_seq_len=32)
    torch.manual_seed(0)
    model = open_model(AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval())
    text = corpus(sequences=sequences)
    data = sweep(model, text, ("drop",), batch_tokens=1000, state_cap=8)
    for layer in range(3):
        blocks = model.traced._module.transformer.blocks
        kept = [block for index, block in enumerate(blocks) if index != layer]
        plain = copy.deepcopy(model.traced._module)
        plain.transformer.blocks = torch.nn.ModuleList(kept)
        with torch.no_grad():
            logits = plain(torch.from_numpy(text.tokens), use_cache=False).logits[:, 1:-1]
        entropy = torch.distributions.Categorical(logits=logits).entropy().mean(1)
        np.testing.assert_allclose(data.entropy.sel(intervention="drop", layer=layer), entropy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_are_neither_scaled_nor_capped_are_refused_in_any_precision(dtype, monkeypatch):
    """What is done to logits after the head, the readouts would not know."""
    net = tiny("llama", dtype)
    original = type(net).forward

    def bent(self, *args, **kwargs):
        out = original(self, *args, **kwargs)
        out.logits = out.logits + out.logits.sin()
        return out

    monkeypatch.setattr(type(net), "forward", bent)
    with pytest.raises(Refusal, match=r"neither as it is nor scaled nor softly capped \(off by"):
        open_model(net)


def test_dtype_and_attention_are_as_asked(saved):
    model = open_model(str(saved), dtype="bfloat16", attention="eager")
    assert (model.identity["dtype"], model.identity["attention"]) == ("bfloat16", "eager")
    assert open_model(saved, dtype="auto").identity["dtype"] == "float32"
    copied, own = model.unembedding(), model.unembedding(copied=False)
    assert own["weight"].data_ptr() == model.head._module.weight.data_ptr() and own["bias"] is None
    assert copied["weight"].dtype in (torch.float32, torch.bfloat16) and copied["bias"] is None


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (T5Config(), "encoder-decoder"),
        (BertConfig(), "encoder; only decoders"),
        (None, "no config.json"),
    ],
    ids=["t5", "bert", "none"],
)
def test_what_is_no_decoder_is_refused_before_any_weights_are_read(tmp_path, config, problem):
    if config is not None:
        config.save_pretrained(tmp_path)
    with pytest.raises(Refusal, match=problem):
        open_model(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_looks_ahead_is_refused_with_the_difference():
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, is_decoder=False,
    )  # fmt: skip
    torch.manual_seed(0)
    with pytest.raises(Refusal, match=r"later token changes earlier logits by 0\.\d"):
        open_model(BertLMHeadModel(config))
    with pytest.raises(Refusal, match="BertForMaskedLM is not a causal language model"):
        open_model(AutoModelForMaskedLM.from_config(config))


def test_blocks_that_do_not_give_the_models_logits_are_refused_with_the_difference(monkeypatch):
    model = tiny("gpt2")
    original = type(model.transformer).forward

    def shifted(self, *args, **kwargs):
        out = original(self, *args, **kwargs)
        out.last_hidden_state = out.last_hidden_state + 0.5
        return out

    monkeypatch.setattr(type(model.transformer), "forward", shifted)
    with pytest.raises(Refusal, match=r"block by block are off by \d"):
        open_model(model)


def test_a_model_without_blocks_is_refused():
    config = GPT2Config(
        n_layer=2, n_embd=8, n_head=2, vocab_size=20, bos_token_id=0, eos_token_id=0
    )
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel(config)
    model.config.num_hidden_layers = 3
    with pytest.raises(Refusal, match="a list of 3 blocks was not found"):
        open_model(model)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("nobody/nothing", "there is no model 'nobody/nothing' to open"),
        ("./missing", "there is no directory ./missing"),
        ("not a name!", "there is no model"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(source, problem):
    with pytest.raises(Refusal, match=problem) as refused:
        open_model(source)
    assert "\n" not in str(refused.value)


def test_a_directory_with_a_broken_config_or_no_weights_is_refused(tmp_path, saved):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(Refusal):
        open_model(tmp_path)
    (saved / "model.safetensors").unlink()
    with pytest.raises(Refusal, match="tiny-llama cannot be loaded"):
        open_model(saved)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing-known"}))
    with pytest.raises(Refusal):
        open_model(tmp_path)


def test_bad_options_are_refused(saved):
    with pytest.raises(Refusal, match="no dtype 'int8'; there are: float32"):
        open_model(saved, dtype="int8")
    with pytest.raises(Refusal, match="device 'cuda:9' cannot be used"):
        open_model(saved, device="cuda:9")


def test_every_family_of_the_tests_is_opened():
    assert set(DEEP) == {"gpt2", "gpt_neox", "llama", "qwen2", "phi"}
