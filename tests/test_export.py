"""An export is a plain checkpoint of what a rewired model computes."""

import copy
import json
import os
import re
from pathlib import Path

import families
import pytest
import torch
from families import DEEP, random_tokens, rebuilt, tiny
from safetensors import safe_open
from tokenizers_for_tests import byte_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    Llama4TextConfig,
    Qwen2MoeConfig,
    SmolLM3Config,
)

from robustness.errors import Refusal
from robustness.models.opening import open_model
from robustness.reordered import rebuilding
from robustness.reordered.exporting import export
from robustness.reordered.rebuilding import rebuild
from robustness.schedules import clean, drop, repeat, swap
from robustness.sweeps import rewire

SCHEDULES = (
    drop(clean(4), 1),
    swap(clean(4), 1),
    repeat(clean(4), 1, 2),
    (3, 3, 3),
)


LISTED = {
    "gemma2": Gemma2Config(
        **families._ROTARY, num_key_value_heads=2, head_dim=8, sliding_window=5,
        final_logit_softcapping=None,
    ),
    "gemma3_text": Gemma3TextConfig(
        **families._ROTARY, num_key_value_heads=2, head_dim=8, sliding_window=5,
        layer_types=[*["sliding_attention"] * 3, "full_attention"],
    ),
    "gpt_neo": GPTNeoConfig(
        vocab_size=101, hidden_size=32, num_layers=4, num_heads=4, window_size=5,
        attention_types=[[["global", "local"], 2]], max_position_embeddings=32, bos_token_id=0,
        eos_token_id=0, initializer_range=0.4,
    ),
    "smollm3": SmolLM3Config(**families._ROTARY, num_key_value_heads=2, pad_token_id=0),
}  # fmt: skip

"""Families whose configurations list something for every layer."""


OTHERS = ("llama", "phi", "falcon", "gemma", "olmo", "olmo2")

"""Families whose configurations list nothing, like that of GPT-2, and whose places mean nothing."""


EVERY = {*DEEP, "bloom", *LISTED} - {*OTHERS}

if os.environ.get("STAGES_FUZZ") == "1":
    EVERY |= {*OTHERS}


def build(name: str) -> torch.nn.Module:
    return plain(LISTED[name], torch.float64) if name in LISTED else tiny(name)


def plain(config, dtype=torch.float32):
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype).eval()


def surgery(monkeypatch, net: torch.nn.Module, schedule) -> torch.nn.Module:
    """Return a copy with another list of blocks, wherever it is."""
    found = [name for name, part in net.named_modules()
             if isinstance(part, torch.nn.ModuleList) and len(part) == 4]  # fmt: skip
    monkeypatch.setitem(families.BLOCKS, net.config.model_type, found[0])
    return rebuilt(net, schedule)


def greedy(net: torch.nn.Module, tokens: torch.Tensor, count: int) -> list[int]:
    """Append the most likely token, one after the other, every prefix anew."""
    for _ in range(count):
        with torch.no_grad():
            best = net(tokens, use_cache=False).logits[:, -1:].argmax(-1)
        tokens = torch.cat([tokens, best], 1)
    return tokens[0].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EVERY))
def test_plain_transformers_loads_what_the_rewired_model_is(tmp_path, monkeypatch, name):
    net = build(name)
    model = open_model(net, tokenizer=byte_tokenizer())
    tokens = random_tokens(2, 20)
    for schedule in SCHEDULES:
        oracle = surgery(monkeypatch, net, schedule)
        path = export(model, schedule, tmp_path / str(schedule))
        loaded = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
        with torch.no_grad():
            expected = oracle(tokens, use_cache=False).logits
            found = loaded(tokens).logits
            before = net(tokens, use_cache=False).logits
        assert found.dtype == torch.float64 and abs(expected - before).max() > 0.01
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
        with torch.no_grad(), rewire(model, schedule).trace(tokens) as tracer:
            rewired = tracer.result.logits.save()
        torch.testing.assert_close(found, rewired, atol=1e-10, rtol=0)
        # Longer than the windows, from the cache.
        prompt = random_tokens(1, 7)
        mask = torch.ones_like(prompt)
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": 100}
        written = loaded.generate(prompt, attention_mask=mask, use_cache=True, **options)[0]
        assert written.tolist() == greedy(oracle, prompt, 8)[: len(written)]
        for place, block in enumerate(loaded.get_submodule(families.BLOCKS[net.config.model_type])):
            numbers = {
                vars(part)[key] for part in block.modules() for key in ("layer_idx", "layer_id")
                if key in vars(part)
            }  # fmt: skip
            assert numbers <= {place}
        assert AutoTokenizer.from_pretrained(path).bos_token == "<s>"
    assert type(net).__name__ == model.identity["architecture"]
    with torch.no_grad():
        torch.testing.assert_close(net(tokens, use_cache=False).logits, before, atol=0, rtol=0)


def test_lists_of_a_configuration_follow_the_blocks(tmp_path):
    model = open_model(build("gpt_neo"))
    config = AutoModelForCausalLM.from_pretrained(export(model, (3, 0, 0), tmp_path / "neo")).config
    assert config.num_layers == 3
    assert config.attention_layers == ["local", "global", "global"]
    model = open_model(build("smollm3"))
    config = json.loads((export(model, (3, 0, 0), tmp_path / "smol") / "config.json").read_text())
    assert config["no_rope_layers"] == [0, 1, 1] and config["num_hidden_layers"] == 3


EXPERTS = {
    "qwen2_moe": Qwen2MoeConfig(
        **families._ROTARY, num_key_value_heads=2, num_experts=4, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, mlp_only_layers=[1],
    ),
    "llama4": Llama4TextConfig(
        **families._ROTARY, num_key_value_heads=2, head_dim=8, num_local_experts=4,
        attention_chunk_size=5, interleave_moe_layer_step=2, intermediate_size_mlp=64,
        pad_token_id=0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(EXPERTS))
def test_lists_that_name_layers_name_their_new_places(tmp_path, name):
    """Experts are computed in float32 alone; `export` compares what was written."""
    model = open_model(plain(EXPERTS[name]))
    path = export(model, (1, 0, 1, 3), tmp_path / "mixed")
    config = json.loads((path / "config.json").read_text())
    if name == "qwen2_moe":
        assert config["mlp_only_layers"] == [0, 2]
    else:
        assert config["moe_layers"] == [0, 2, 3] and config["no_rope_layers"] == [1, 1, 1, 0]
    kinds = [type(block.mlp if name == "qwen2_moe" else block.feed_forward).__name__
             for block in AutoModelForCausalLM.from_pretrained(path).model.layers]  # fmt: skip
    assert kinds[0] == kinds[2] != kinds[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "schedule", "problem"),
    [
        (
            GPT2Config(
                vocab_size=101, n_positions=32, n_embd=32, n_layer=4, n_head=4, bos_token_id=0,
                eos_token_id=0, scale_attn_by_inverse_layer_idx=True,
            ),
            (0, 2, 3),
            "in place 1 block 2 would have another scaling, and no setting of GPT2LMHeadModel",
        ),
        (
            DeepseekV3Config(
                **families._ROTARY, n_routed_experts=4, first_k_dense_replace=1, n_group=1,
                moe_intermediate_size=16, topk_group=1, num_experts_per_tok=2, q_lora_rank=16,
                kv_lora_rank=16, qk_rope_head_dim=8, v_head_dim=8, qk_nope_head_dim=8,
                pad_token_id=0,
            ),
            (1, 2, 3),
            "in place 0 block 1 would have a DeepseekV3MLP instead of a DeepseekV3MoE",
        ),
    ],
    ids=["scaled by its number", "the first is dense"],
)  # fmt: skip
def test_what_a_configuration_cannot_say_is_refused_and_nothing_is_left(
    tmp_path, config, schedule, problem
):
    model = open_model(plain(config))
    with pytest.raises(Refusal, match=problem) as refused:
        export(model, schedule, tmp_path / "out")
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())
    export(model, clean(4), tmp_path / "out")


def test_another_order_of_masks_is_noticed(tmp_path, monkeypatch):
    """As if a list of the configuration had been overlooked."""
    model = open_model(tiny("qwen2"))
    monkeypatch.setattr(rebuilding, "NOT_OF_LAYERS", ("architectures", "layer_types"))
    with pytest.raises(Refusal, match="in place 1 block 2 would have another layer_type"):
        rebuild(model, (0, 2, 1, 3))
    monkeypatch.setattr(rebuilding, "_difference", lambda *_: "")
    with pytest.raises(Refusal, match=r"its logits would be off by \d"):
        rebuild(model, (0, 2, 1, 3))


def test_a_file_that_is_loaded_as_another_model_is_noticed(tmp_path, monkeypatch):
    from transformers import PreTrainedModel

    model = open_model(tiny("llama"))
    original = PreTrainedModel.save_pretrained

    def damaged(self, path, state_dict, **options):
        name = "model.layers.1.mlp.up_proj.weight"
        changed = state_dict | {name: state_dict[name] * 1.01}
        original(self, path, state_dict=changed, **options)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", damaged)
    with pytest.raises(Refusal, match=r"its logits would be off by 0\.\d"):
        export(model, (0, 1, 3), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_rebuilt_model_shares_every_tensor(gpt2):
    net = rebuild(gpt2, (0, 1, 1, 3))
    own = {tensor.data_ptr() for tensor in gpt2.traced._module.state_dict().values()}
    assert {tensor.data_ptr() for tensor in net.state_dict().values()} <= own
    assert net.lm_head.weight is net.transformer.wte.weight
    assert [block.attn.layer_idx for block in net.transformer.h] == [0, 1, 2, 3]
    assert gpt2.traced._module.config.n_layer == 4


def test_tied_weights_stay_tied_and_repeated_blocks_are_written_twice(tmp_path, gpt2):
    said = []
    path = export(gpt2, (0, 1, 1, 3), tmp_path / "twice", notify=said.append)
    with safe_open(path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        first, second = (file.get_tensor(f"transformer.h.{at}.attn.c_attn.weight") for at in (1, 2))
    assert torch.equal(first, second) and "lm_head.weight" not in names
    loaded = AutoModelForCausalLM.from_pretrained(path)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    block = gpt2.traced._module.transformer.h[1]
    more = sum(tensor.nbytes for tensor in block.state_dict().values()) / 1e6
    whole = (path / "model.safetensors").stat().st_size / 1e6
    assert said == [
        f"block 1 is executed and written more than once: {more:,.1f} MB of {whole:,.1f} MB"
    ]
    export(gpt2, (0, 3, 1), tmp_path / "once", notify=said.append)
    assert len(said) == 1


@pytest.mark.slow
def test_the_configuration_and_the_card_say_where_it_comes_from(tmp_path):
    model = open_model("builtin", dtype="auto")
    path = export(model, drop(clean(12), 5), tmp_path / "pruned", command="stages export builtin")
    entry = json.loads((path / "config.json").read_text())["stages"]
    assert entry["schedule"] == "0..4-6..11" and entry["model"] == "builtin"
    assert entry["weights_sha256"] == model.identity["weights_sha256"]
    assert entry["command"] == "stages export builtin" and entry["layers"] == "12"
    card = (path / "README.md").read_text()
    assert "`builtin` (GPT2LMHeadModel, 12 blocks)" in card and "0..4-6..11" in card
    assert str(tmp_path) not in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert 'from_pretrained("pruned", dtype="auto")' in code
    again = open_model(path, dtype="auto")
    assert again.identity["dtype"] == "float16" and again.layers == 11
    assert again.identity["made_from"] == "builtin 0..4-6..11"
    other = open_model(export(model, drop(clean(12), 5), tmp_path / "again"), dtype="auto")
    for name in ("weights_sha256", "config_sha256"):
        assert other.identity[name] == again.identity[name] != model.identity[name]


def test_no_checkpoint_of_a_model_whose_weights_are_elsewhere(tmp_path, strict_model):
    with pytest.raises(Refusal, match="are on a server: open it on this machine"):
        export(strict_model, (0, 1), tmp_path / "out")
    with pytest.raises(Refusal, match="there is no block 4"):
        export(strict_model, (0, 4), tmp_path / "out")


@pytest.mark.slow
def test_the_command_prints_a_model_that_a_sweep_takes(run):
    code, out, err = run("export", "builtin", "--schedule", "0..5-5-7..", "pruned")
    assert (code, out) == (0, "pruned\n"), err
    assert "stages: block 5 is executed and written more than once: 0.4 MB of 5.3 MB" in err
    path = Path("pruned")
    model = open_model("builtin", dtype="float16")
    loaded = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    ids = model.tokenizer("Once upon a time there was a", return_tensors="pt").input_ids
    with torch.no_grad(), rewire(model, (*range(6), 5, *range(7, 12))).trace(ids) as tracer:
        rewired = tracer.result.logits.save()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, rewired, atol=0.05, rtol=0)
    code, out, err = run("sweep", "pruned", "--tokens", 256, "--context", 32, "--drop")
    assert (code, out) == (0, "outputs/pruned/sweep.nc\n"), err
    code, _, err = run("export", "builtin", "--schedule", "0..5-7..", "pruned", "--quiet")
    assert code == 1 and err == (
        "stages: the directory pruned is not empty: choose another place, or --fresh to replace "
        "what stages wrote there\n"
    )
    code, out, _ = run("export", "builtin", "--schedule", "0..5-7..", "pruned", "--fresh")
    assert (code, out) == (0, "pruned\n")
    for words, problem in (
        (("builtin", "--schedule", "0-x", "new"), "character 3 ('x')"),
        (("nobody/nothing", "--schedule", "0-1", "new"), "there is no model 'nobody/nothing'"),
    ):
        code, _, err = run("export", *words)
        assert code == 1 and problem in err
    assert not Path("new").exists()


def test_a_model_of_code_of_its_own_has_no_plain_checkpoint(tmp_path, monkeypatch):
    model = open_model(tiny("llama"))
    monkeypatch.setattr(type(model.traced._module), "_auto_class", "AutoModelForCausalLM")
    with pytest.raises(
        Refusal, match=r"runs code of its own .*: export a model of a class in tran"
    ):
        export(model, (0, 1, 3), tmp_path / "out")
    assert not list(tmp_path.iterdir())
