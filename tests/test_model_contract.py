"""Directories that come in: what they may hold, and what is said of those that are refused."""

import json
import os
import struct
import sys

import pytest
import torch
from families import tiny
from safetensors.torch import load_file, save_file
from tokenizers_for_tests import byte_tokenizer, word_level
from torch.nn import LayerNorm
from transformers import AutoConfig, AutoModelForCausalLM

from robustness.errors import LONGEST_MESSAGE, Refusal, first_line
from robustness.measurements.prediction_neurons import neurons
from robustness.models import checkpoint, contract
from robustness.models.opening import open_model


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "tiny"
    tiny("llama", torch.float32).save_pretrained(path)
    word_level(101).save_pretrained(path)
    return path


def edit(path, **changes):
    whole = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(whole))


def refused(source, **options):
    with pytest.raises(Refusal) as told:
        open_model(source, **options)
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0, which is no whole number above 0"),
        ({"num_hidden_layers": 10**13}, "more than 4096"),
        ({"vocab_size": -1}, "vocab_size = -1, which is no whole number above 0"),
        ({"dtype": "float7"}, '"float7", which is none of float64, float32'),
        ({"torch_dtype": "Tensor"}, '"Tensor", which is none of'),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "factor = -1, which is no number"),
        ({"rope_parameters": "x"}, "which is no object"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = NaN, which is no number"),
        ({"rms_norm_eps": -0.5}, "below 0"),
        ({"use_cache": "yes"}, "use_cache"),
        ({"quantization_config": "x"}, "has quantised weights"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"has quantised weights \(gptq\)"),
        ({"attn_implementation": "nobody/kernel"}, "may be code from elsewhere"),
        ({"transformers_weights": "other.safetensors"}, "remove that entry"),
        ({"hidden_size": 2**40, "head_dim": 8}, r"of shape \(101, 32\) in the checkpoint and"),
        ({"max_position_embeddings": 0}, "which is no whole number above 0"),
        ({"hidden_act": "nothing"}, "no model can be built as its config.json says"),
    ],
)
def test_a_configuration_of_which_nothing_can_be_made_is_refused_by_its_entry(saved, changes, told):
    edit(saved / "config.json", **changes)
    with pytest.raises(Refusal, match=told):
        open_model(saved)


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path):
    tiny("gpt2", torch.float32).save_pretrained(tmp_path)
    word_level(101).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", n_head=7)
    assert "7 attention heads, which do not divide the width 32" in refused(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{", "[" * 10**5, '{"a":' * 99 + "1" + "}" * 99]
)
@pytest.mark.parametrize("file", contract.SETTINGS)
def test_settings_that_are_no_object_are_refused_by_the_name_of_the_file(saved, file, text):
    (saved / file).write_text(text)
    assert file in refused(saved)


def test_a_model_of_more_numbers_than_its_checkpoint_is_refused_before_it_takes_memory(
    tmp_path, monkeypatch
):
    """Experts are put together from several tensors, so that no shape tells of them."""
    sizes = dict(vocab_size=101, hidden_size=16, intermediate_size=16, num_hidden_layers=2)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, num_local_experts=2)
    config = AutoConfig.for_model("mixtral", **sizes, **heads, bos_token_id=0, eos_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    word_level(101).save_pretrained(tmp_path)
    assert open_model(tmp_path).layers == 2
    edit(tmp_path / "config.json", num_local_experts=50_000)
    monkeypatch.setattr(checkpoint, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(Refusal, match=r"in the checkpoint and|the checkpoint holds"):
        open_model(tmp_path)


def test_tables_that_no_machine_has_room_for_are_refused(tmp_path):
    """GPT-J keeps a mask of its context squared that is in no checkpoint."""
    config = AutoConfig.for_model(
        "gptj", vocab_size=101, n_embd=16, n_layer=1, n_head=2, n_positions=32, rotary_dim=4
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    word_level(101).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", n_positions=10**11)
    assert "asks for tables of" in refused(tmp_path)


def change_weights(path, change):
    file = path / "model.safetensors"
    found = load_file(file)
    change(found)
    save_file(found, file, {"format": "pt"})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_weight_that_is_no_number_is_refused_by_its_name(saved, value):
    name = "model.layers.2.mlp.up_proj.weight"
    change_weights(saved, lambda found: found[name].__setitem__((0, 0), float(value)))
    told = refused(saved)
    assert name in told and "not a decoder" not in told
    with pytest.raises(Refusal, match="holds"):
        open_model(saved, device_map="disk")


def test_weights_that_half_precision_has_no_room_for_are_told_from_damaged_ones(saved):
    change_weights(saved, lambda found: found["lm_head.weight"].mul_(1e6))
    told = refused(saved, dtype="float16")
    assert "lm_head.weight holds infinity as float16: use `dtype` bfloat16 or float32" in told
    assert open_model(saved, dtype="bfloat16").layers == 4


def test_numbers_that_half_precision_has_no_room_for_are_not_called_a_model_that_looks_ahead(saved):
    def enlarge(found):
        for name in ("model.norm.weight", "lm_head.weight"):
            found[name].mul_(2000)

    change_weights(saved, enlarge)
    told = refused(saved, dtype="float16")
    assert "overflows" in told and "use `dtype` bfloat16 or float32" in told
    assert open_model(saved, dtype="float32").layers == 4


def test_a_weight_of_another_shape_is_told_with_both_shapes(saved):
    name = "model.layers.0.mlp.up_proj.weight"
    change_weights(saved, lambda found: found.__setitem__(name, torch.ones(3, 5)))
    told = refused(saved)
    assert name in told and "(3, 5)" in told and "(64, 32)" in told
    with pytest.raises(Refusal, match=r"\(3, 5\)"):
        for layer in (0, 1):
            name = f"model.layers.{layer}.mlp.down_proj.weight"
            change_weights(saved, lambda found, it=name: found.__setitem__(it, torch.ones(3, 5)))
        neurons(saved)


def test_weights_of_whole_numbers_are_refused(saved):
    name = "model.layers.0.mlp.up_proj.weight"
    change_weights(saved, lambda found: found.__setitem__(name, found[name].to(torch.int8)))
    assert f"{name} holds numbers of type I8" in refused(saved)


def header(path, change):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    entries = json.loads(data[8 : 8 + length])
    change(entries)
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_a_file_whose_header_lies_is_refused_by_its_name(saved):
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    for length in (2**63, 2**64 - 1, 0, 10**9):
        file.write_bytes(struct.pack("<Q", length) + whole[8:])
        assert "model.safetensors is damaged" in refused(saved)
    for change in ({"data_offsets": [0, 2**62]}, {"dtype": "F31"}, {"shape": [2**40, 2**40]}):
        file.write_bytes(whole)
        header(file, lambda entries, it=change: entries["lm_head.weight"].update(it))
        assert "model.safetensors is damaged" in refused(saved)
    for cut in (0, 4, 1000, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert "model.safetensors is damaged" in refused(saved)


@pytest.fixture
def divided(saved):
    """The same model in two files and an index."""
    found = load_file(saved / "model.safetensors")
    names = sorted(found)
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, inside in parts.items():
        save_file({name: found[name] for name in inside}, saved / file, {"format": "pt"})
    (saved / "model.safetensors").unlink()
    places = {name: file for file, inside in parts.items() for name in inside}
    index = {"metadata": {}, "weight_map": places}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    return saved


@pytest.mark.parametrize(
    "file", ["../a.safetensors", "/etc/passwd", "/dev/zero", "c.safetensors", "", None, "a.bin"]
)
def test_an_index_that_leads_elsewhere_is_refused(divided, file):
    assert open_model(divided).layers == 4
    (divided.parent / "a.safetensors").write_bytes((divided / "a.safetensors").read_bytes())
    index = divided / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map=places | {"lm_head.weight": file})
    assert "tiny cannot be loaded: " in refused(divided)
    edit(index, weight_map=dict.fromkeys(places, file))
    assert "tiny cannot be loaded: " in refused(divided)


def test_a_tensor_that_is_in_two_files_or_not_in_its_own_is_refused(divided):
    index = divided / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map=places | {"lm_head.weight": "b.safetensors"})
    assert "lm_head.weight is not in b.safetensors" in refused(divided)
    edit(index, weight_map=places)
    both = load_file(divided / "b.safetensors")
    both["lm_head.weight"] = torch.zeros(101, 32)
    save_file(both, divided / "b.safetensors", {"format": "pt"})
    assert "is both in a.safetensors and in b.safetensors" in refused(divided)


def test_the_undivided_file_is_what_is_read_where_there_is_an_index_too(divided):
    """As transformers has it: neurons are of the weights that a sweep is of."""
    found = load_file(divided / "a.safetensors") | load_file(divided / "b.safetensors")
    found = {name: 3 * value for name, value in found.items()}
    save_file(found, divided / "model.safetensors", {"format": "pt"})
    from robustness.models.output_weights import open_weights

    model, weights = open_model(divided), open_weights(divided)
    torch.testing.assert_close(weights.unembedding, model.head._module.weight.detach())


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "x.jinja"])
@pytest.mark.parametrize("what", ["pipe", "device", "nowhere"])
def test_what_is_no_file_is_refused_and_not_waited_for(saved, file, what):
    path = saved / file
    path.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if what == "device" else "nothing")
    with pytest.raises(Refusal, match=r"neither file nor directory|leads nowhere|no config\.json"):
        open_model(saved)


def test_an_adapter_beside_a_model_is_not_added_without_a_word(saved):
    (saved / "adapter_config.json").write_text('{"base_model_name_or_path": "nobody/nothing"}')
    assert "holds an adapter" in refused(saved)
    with pytest.raises(Refusal, match="holds an adapter"):
        neurons(saved)


def test_a_checkpoint_of_distributed_training_is_refused(saved):
    file = saved / "model.safetensors"
    file.rename(saved / "shard-00001-model-00001-of-00001.safetensors")
    assert "distributed training" in refused(saved)


@pytest.fixture
def evil(saved, monkeypatch):
    """A directory with code that leaves a mark, and a keyboard that fails."""
    mark = saved.parent / "mark"
    (saved / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\n")

    def asked(*_):
        raise AssertionError("asked on standard input")

    monkeypatch.setattr("builtins.input", asked)
    yield saved
    assert not mark.exists()


def test_code_that_comes_with_a_model_is_neither_run_nor_asked_about(evil):
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")
    code = {"auto_map": dict.fromkeys(names, "evil.Evil")}
    edit(evil / "config.json", **code)
    assert open_model(evil).layers == 4
    edit(evil / "config.json", model_type="evil")
    assert "needs code that comes with it (evil): `trust_remote_code`" in refused(evil)
    edit(evil / "config.json", model_type="llama")
    tokenizer = evil / "tokenizer_config.json"
    edit(tokenizer, auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil")
    assert "is code of its own" in refused(evil)
    with pytest.raises(Refusal, match="is code of its own"):
        checkpoint.load_tokenizer("tiny", str(evil))


def test_a_template_for_chats_is_not_run(evil):
    edit(evil / "tokenizer_config.json", chat_template="{{ ''.__class__ }}{% for")
    assert open_model(evil).layers == 4


def test_a_directory_never_has_the_hub_asked(saved, monkeypatch):
    import huggingface_hub.constants
    import transformers.utils.hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(transformers.utils.hub, "is_offline_mode", bool)

    def asked(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("socket.socket.connect", asked)
    edit(saved / "config.json", _name_or_path="nobody/nothing")
    assert open_model(saved).layers == 4
    neurons(saved)


def test_a_tokenizer_that_is_not_the_models_is_refused(saved):
    word_level(102).save_pretrained(saved)
    assert "a token has the number 101, and the model knows 101 tokens" in refused(saved)
    tokenizer = word_level(101)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(saved)
    assert open_model(saved).tokenizer.pad_token_id == 101
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(saved)
    assert "its eos_token_id has the number 102" in refused(saved)
    for file in saved.glob("tokenizer*"):
        file.unlink()
    assert "tiny has no tokenizer" in refused(saved)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems make names UTF-8")
def test_names_that_are_not_utf8_are_refused_or_read(saved):
    (saved / os.fsdecode(b"\xff.safetensors")).write_bytes(b"x")
    assert len(open_model(saved).identity["weights_sha256"]) == 64
    other = saved.rename(saved.with_name(os.fsdecode(b"\xff")))
    assert "is no name of a model" in refused(other)


def test_options_that_do_not_fit_are_refused_with_what_would_do(saved):
    for options, problem in (
        ({"device": "nonsense"}, "there is no device 'nonsense': give cpu, cuda, cuda:1 or mps"),
        ({"device": "meta"}, "nothing is computed there"),
        ({"device": "cuda:99"}, "cannot be used .*: give cpu, or leave it out"),
        ({"revision": "main"}, "is a directory, which has no revisions: leave out `revision`"),
        ({"device_map": "cpu", "offload": saved / "config.json"}, "give a directory"),
        ({"device_map": {"": "nonsense"}}, "there is no device 'nonsense'"),
    ):
        with pytest.raises(Refusal, match=problem) as told:
            open_model(saved, **options)
        assert "\n" not in str(told.value)


def test_a_model_that_has_no_room_is_refused_with_what_takes_less(saved, monkeypatch):
    lacking = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")
    for error in (MemoryError(), lacking):

        def fail(*_, it=error, **__):
            raise it

        with monkeypatch.context() as changed:
            changed.setattr(AutoModelForCausalLM, "from_pretrained", fail)
            assert "give `dtype` bfloat16, or `device_map` auto" in refused(saved)
        if error is lacking:
            monkeypatch.setattr(torch.nn.Module, "to", fail)
            assert "does not fit on cpu" in refused(saved)


def test_a_message_of_another_library_is_one_short_printable_line():
    assert first_line(ValueError("\x1b[31mred\x07")) == "?[31mred?"
    assert len(first_line(ValueError("long " * 1000))) == LONGEST_MESSAGE
    assert first_line(KeyError("gelu2")) == "there is no 'gelu2'"
    assert first_line(ZeroDivisionError()) == "ZeroDivisionError"


DEEPER = {
    "vocab_size": 101, "hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 5, "context_length": 32, "rescale_every": 2, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Module .* has a submodule named:UserWarning")
@pytest.mark.parametrize("ran_before", [False, True])
@pytest.mark.parametrize("stored", [False, True])
def test_rwkv_that_halves_its_residual_stream_opens_as_what_it_is_in_training(
    tmp_path, stored, ran_before
):
    """Without what norms add to the variance, halving changes nothing, and it was all there is."""
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("rwkv", **DEEPER), dtype=torch.float64
    )
    for part in net.modules():
        if isinstance(part, LayerNorm):
            part.eps = 0.0
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    source = net
    if stored:
        net.save_pretrained(tmp_path)
        word_level(101).save_pretrained(tmp_path)
        source = tmp_path
    with torch.no_grad():
        expected = net.eval()(tokens, use_cache=False).logits
        halved = any((net.state_dict()[name] != value).any() for name, value in weights.items())
        assert halved
        if not ran_before and not stored:
            net.load_state_dict(weights)
            net.rwkv.layers_are_rescaled = False
        model = open_model(source, dtype="float64") if stored else open_model(source)
        module = model.traced._module
        for part in module.modules():
            if isinstance(part, LayerNorm):
                part.eps = 0.0
        found = module(tokens, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for name, value in module.state_dict().items():
        assert (value == weights[name]).all(), name


def test_an_untyped_device_is_asked_for_float64_only_on_the_cpu(monkeypatch):
    """Apple's have none: what is fitted in it must have come to the CPU before."""
    from robustness.trace import unembedding

    here: list[torch.Tensor] = []
    to_cpu, to_double = torch.Tensor.cpu, torch.Tensor.double

    def cpu(tensor):
        here.append(to_cpu(tensor))
        return here[-1]

    def double(tensor):
        if not any(tensor is each for each in here):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return to_double(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    monkeypatch.setattr(torch.Tensor, "double", double)
    z = unembedding.trial(torch.zeros(1, 2, 3))
    assert unembedding.fit(z, 3 * z, [3.0]) == {"scale": 3.0, "cap": None, "off": 0.0}


def test_byte_tokenizers_of_the_tests_are_sound():
    contract.check_tokenizer("bytes", byte_tokenizer(), 257)
