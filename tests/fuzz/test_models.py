"""Model directories of every odd kind, opened through the command line.

Case `n` is made from the seed `n` alone, so that a failure is seen again by its name. The variable
STAGES_FUZZ of the environment says which share of the cases runs: 1 is all of them.
"""

import json
import os
import random
import re
import shutil
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers_for_tests import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

import cli

CASES = 260
SHARE = float(os.environ.get("STAGES_FUZZ", "0.08"))
LONGEST = 20
"""Seconds."""

MARKER = "ran.txt"

SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "llama": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 32,
    },
    "gpt_neox": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 32,
    },
    "mixtral": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32,
        "num_local_experts": 2,
    },
    "opt": {
        "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 32, "word_embed_proj_dim": 16, "pad_token_id": 1,
    },
}  # fmt: skip

ODD: list[Any] = [
    None, "x", "", -1, 0, 1, 3, 7, 0.5, 1e308, float("nan"), float("inf"), 10**12, 2**63, True, [],
    [None], {}, {"a": {"a": [1]}}, "../../etc/passwd", "\x1b[31m", "é\ud800",
]  # fmt: skip
"""What a value is replaced by."""

REMEDY = re.compile(
    r"fetch it anew|\b(give|use|open|remove|rename|load|merge|leave out|choose|runs|mend)\b"
    r"|only decoders|was found in"
)
"""What each message has: what would do, or which models do."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sound directory of every family."""
    found = {}
    for kind, sizes in SIZES.items():
        path = tmp_path_factory.mktemp("bases") / kind
        torch.manual_seed(0)
        ids = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": 257}
        config = AutoConfig.for_model(kind, **(ids | sizes), initializer_range=0.3)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)
        byte_tokenizer().save_pretrained(path)
        found[kind] = path
    return found


def write(path: Path, value: Any) -> None:
    path.write_bytes(json.dumps(value).encode())


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every entry of nested lists and objects."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, each in inside:
        found.append((*above, key))
        if isinstance(each, (dict, list)) and each and len(found) < 300:
            found += places(each, (*above, key))[:40]
    return found


def replace(draw: random.Random, path: Path, *, times: int = 1) -> None:
    """Replace entries of a file of JSON by something odd, or remove them."""
    whole = json.loads(path.read_text())
    for _ in range(times):
        *way, last = draw.choice(places(whole))
        place = whole
        for key in way:
            place = place[key]
        if draw.random() < 0.15:
            del place[last]
        else:
            place[last] = draw.choice(ODD)
    write(path, whole)


def bytes_changed(draw: random.Random, path: Path, *, head: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 4)):
        data[draw.randrange(min(head or len(data), len(data)))] = draw.randrange(256)
    path.write_bytes(data)


def cut(draw: random.Random, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.choice([0, 1, 7, 8, 9, len(data) // 2, len(data) - 1])])


def config_entry(draw: random.Random, path: Path) -> None:
    replace(draw, path / "config.json")


def config_entries(draw: random.Random, path: Path) -> None:
    replace(draw, path / "config.json", times=3)


def config_added(draw: random.Random, path: Path) -> None:
    added: dict[str, Any] = draw.choice(
        [
            {"quantization_config": {"quant_method": draw.choice(["gptq", "bitsandbytes", None])}},
            {"quantization_config": draw.choice(["x", 3, []])},
            {"_name_or_path": "../../etc"},
            {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}},
            {"auto_map": draw.choice(ODD)},
            {"auto_map": {"AutoConfig": "evil.Evil"}, "model_type": "evil"},
            {"rope_scaling": {"type": "linear", "factor": draw.choice(ODD)}},
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1], "long_factor": []}},
            {"rope_parameters": {"rope_type": draw.choice(["yarn", "x", None]), "rope_theta": 0}},
            {"rope_parameters": draw.choice(ODD)},
            {"transformers_weights": draw.choice(["../x.safetensors", "evil.py", 3])},
            {"attn_implementation": draw.choice(["nobody/kernel", "flash_attention_2", 3])},
            {"experts_implementation": "nobody/kernel"},
            {"fusion_config": {"a": 1}},
            {"dtype": draw.choice(["float8", "int64", "os.system", 3, "x"])},
            {"torch_dtype": "Tensor"},
            {"is_encoder_decoder": True},
            {"custom_pipelines": {"text-generation": {"impl": "evil.Evil", "pt": ["AutoModel"]}}},
            {"layer_types": draw.choice([["full_attention"], ["x", "y"], "x"])},
            {"pruned_heads": {"0": [0]}},
            {"tie_word_embeddings": True},
            {"output_attentions": True},
            {"return_dict": False},
            {"use_cache": "x"},
            {"num_experts_per_tok": 100},
            {"pad_token_id": 10**9},
        ]
    )
    write(path / "config.json", json.loads((path / "config.json").read_text()) | added)


def config_whole(draw: random.Random, path: Path) -> None:
    whole = draw.choice(
        [b"", b"null", b"[]", b"3", b"{", b'"x"', b"\xff\xfe{}", b"[" * 100_000, b"{}",
         b'{"a":' * 900 + b"1" + b"}" * 900, b'{"model_type": "gpt2"}', b'{"model_type": null}',
         b"\0" * 100, b'{"model_type": "gpt2", "model_type": "llama"}']
    )  # fmt: skip
    (path / "config.json").write_bytes(whole)


def sizes(draw: random.Random, path: Path) -> None:
    """Sizes that are no sizes, or that nothing has room for."""
    whole = json.loads((path / "config.json").read_text())
    named = [key for key in whole if key in set().union(*SIZES.values()) | {"vocab_size"}]
    whole[draw.choice(named)] = draw.choice(
        [0, -2, 3, 5, 1e9, 4000, 10**6, 10**9, 10**13, "2", 2.0, [2]]
    )
    write(path / "config.json", whole)


def tensors(draw: random.Random, path: Path) -> None:
    """Weights of other names, shapes, types and values."""
    file = path / "model.safetensors"
    found = load_file(file)
    name = draw.choice(sorted(found))
    value = found[name]
    flat = value.reshape(-1)
    what = draw.randrange(9)
    if what == 0:
        del found[name]
    elif what == 1:
        found["something.else"] = torch.ones(3)
    elif what in (2, 3):
        flat[draw.randrange(len(flat))] = draw.choice([float("nan"), float("inf"), -float("inf")])
    elif what == 4:
        found[name] = torch.ones(draw.choice([(), (0,), (3,), (2, 3), (1, 1, 1)]))
    elif what == 5:
        found[name] = value.to(draw.choice([torch.int8, torch.bool, torch.float8_e4m3fn]))
    elif what == 6:
        found[name] = value.T.contiguous() if value.ndim > 1 else value[:-1].contiguous()
    elif what == 7:
        found = {f"x.{key}": each for key, each in found.items()}
    else:
        found[name] = value * 1e30
    save_file(found, file, {"format": "pt"})


def header(draw: random.Random, path: Path) -> None:
    """A header that lies."""
    file = path / "model.safetensors"
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    entries = json.loads(data[8 : 8 + length])
    names = [key for key in entries if key != "__metadata__"]
    entry = entries[draw.choice(names)]
    what = draw.randrange(7)
    if what == 0:
        file.write_bytes(struct.pack("<Q", draw.choice([2**63, 2**64 - 1, 2**31, 0, 1])) + data[8:])
        return
    if what == 1:
        entry["data_offsets"] = draw.choice([[0, 2**62], [5, 1], [-1, 3], ["a", "b"], [0]])
    elif what == 2:
        entry["data_offsets"] = entries[names[0]]["data_offsets"]
    elif what == 3:
        entry["dtype"] = draw.choice(["F31", "", None, "I64", "F8_E5M2", 3])
    elif what == 4:
        entry["shape"] = draw.choice([[2**40, 2**40], [-1], ["a"], None, [0], [[1]]])
    elif what == 5:
        entries["__metadata__"] = draw.choice([None, {"format": "tf"}, {"format": 3}, "x", {}])
    else:
        del entry[draw.choice(sorted(entry))]
    text = json.dumps(entries).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def damaged_weights(draw: random.Random, path: Path) -> None:
    change = draw.choice([cut, bytes_changed, lambda d, p: bytes_changed(d, p, head=600)])
    change(draw, path / "model.safetensors")


def index(draw: random.Random, path: Path) -> None:
    """Shards that are not there, elsewhere, or not what the index says."""
    whole = path / "model.safetensors"
    found = load_file(whole)
    names = sorted(found)
    half = len(names) // 2
    parts = {"a.safetensors": names[:half], "b.safetensors": names[half:]}
    for file, inside in parts.items():
        save_file({name: found[name] for name in inside}, path / file, {"format": "pt"})
    whole.unlink()
    places_of = {name: file for file, inside in parts.items() for name in inside}
    name = draw.choice(names)
    write(path / "../outside.safetensors", 1)
    shutil.copy(path / "a.safetensors", path.parent / "outside.safetensors")
    content: Any = {"metadata": {"total_size": 3}, "weight_map": places_of}
    what = draw.randrange(9)
    if what == 0:
        places_of[name] = draw.choice(
            ["../outside.safetensors", str((path.parent / "outside.safetensors").resolve()),
             "../../etc/passwd", "/etc/passwd", "/dev/zero", "", ".", "c.safetensors", "\0",
             None, 3]
        )  # fmt: skip
    elif what == 1:
        del places_of[name]
    elif what == 2:
        places_of[name] = "a.safetensors" if places_of[name] == "b.safetensors" else "b.safetensors"
    elif what == 3:
        content["weight_map"] = draw.choice([None, [], {}, "x", 3])
    elif what == 4:
        content = draw.choice([None, [], {}, "x"])
    elif what == 5:
        (path / "b.safetensors").unlink()
    elif what == 6:
        content["metadata"] = draw.choice([None, [], "x"])
    elif what == 7:
        (path / "b.safetensors").write_bytes(b"")
    else:
        places_of["more.weight"] = "a.safetensors"
    write(path / "model.safetensors.index.json", content)


def tokenizer_entry(draw: random.Random, path: Path) -> None:
    replace(draw, path / draw.choice(["tokenizer.json", "tokenizer_config.json"]))


def tokenizer_damaged(draw: random.Random, path: Path) -> None:
    file = path / draw.choice(["tokenizer.json", "tokenizer_config.json"])
    what = draw.randrange(5)
    if what == 0:
        file.unlink()
    elif what == 1:
        cut(draw, file)
    elif what == 2:
        file.write_bytes(draw.choice([b"null", b"[]", b"[" * 100_000, b"\xff", b"{}", b"3"]))
    elif what == 3:
        bytes_changed(draw, file)
    else:
        for each in path.glob("tokenizer*"):
            each.unlink()


def tokenizer_other(draw: random.Random, path: Path) -> None:
    """Tokens beyond the vocabulary, other classes, code, and paths elsewhere."""
    file = path / "tokenizer_config.json"
    added: dict[str, Any] = draw.choice(
        [
            {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}},
            {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}},
            {"auto_map": ["evil.Evil", "evil.Evil"]},
            {"auto_map": draw.choice(ODD)},
            {
                "tokenizer_class": draw.choice(
                    ["BertJapaneseTokenizer", "RagTokenizer", "os.system"]
                )
            },
            {"tokenizer_class": draw.choice(ODD)},
            {"tokenizer_file": "/etc/passwd", "vocab_file": "/etc/passwd"},
            {"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for"},
            {"bos_token": draw.choice(["new", {"content": "new"}, 3, {}])},
            {"model_max_length": draw.choice(ODD)},
            {"added_tokens_decoder": {"999999": {"content": "far", "special": True}}},
            {"added_tokens_decoder": draw.choice(ODD)},
            {"extra_special_tokens": draw.choice(ODD)},
        ]
    )
    write(file, json.loads(file.read_text()) | added)
    if draw.random() < 0.3:
        whole = json.loads((path / "tokenizer.json").read_text())
        whole["model"]["vocab"]["far"] = draw.choice([257, 10**6, 2**33, -1])
        write(path / "tokenizer.json", whole)


def generation(draw: random.Random, path: Path) -> None:
    file = path / "generation_config.json"
    if draw.random() < 0.3:
        file.write_bytes(draw.choice([b"", b"null", b"[]", b"{", b"[" * 100_000, b"\xff", b"3"]))
        return
    added = draw.choice(
        [
            {"eos_token_id": draw.choice(ODD)},
            {"temperature": draw.choice(ODD), "do_sample": True},
            {"cache_implementation": "x"},
            {"max_length": draw.choice(ODD)},
            {"num_beams": draw.choice(ODD)},
            {"custom_generate": "evil.py"},
            {"suppress_tokens": [10**9]},
            {"num_return_sequences": 5},
            {"assistant_model": "nobody/nothing"},
        ]
    )
    write(file, json.loads(file.read_text()) | added)


def files(draw: random.Random, path: Path) -> None:
    """Further files, and what is no file in the place of one."""
    what = draw.randrange(9)
    name = draw.choice(["config.json", "model.safetensors", "tokenizer.json",
                        "tokenizer_config.json", "generation_config.json"])  # fmt: skip
    if what == 0:
        (path / name).unlink()
        os.mkfifo(path / name)
    elif what == 1:
        (path / name).unlink()
        (path / name).symlink_to(draw.choice(["/dev/zero", "/etc/passwd", name, "nowhere"]))
    elif what == 2:
        (path / name).unlink()
        (path / name).mkdir()
    elif what == 3:
        entries = draw.choice([{"base_model_name_or_path": "nobody/nothing"}, None, "x"])
        write(path / "adapter_config.json", entries)
        (path / "adapter_model.bin").write_bytes(b"x")
    elif what == 4:
        (path / "model.safetensors").unlink()
        torch.save({"a": torch.ones(3)}, path / "pytorch_model.bin")
    elif what == 5:
        os.mkfifo(path / draw.choice(["special_tokens_map.json", "added_tokens.json",
                                      "chat_template.jinja", "adapter_config.json",
                                      "processor_config.json"]))  # fmt: skip
    elif what == 6:
        (path / "model.safetensors").rename(path / "shard-00001-model-00001-of-00001.safetensors")
    elif what == 7:
        (path / "custom_generate").mkdir()
        shutil.copy(path / "evil.py", path / "custom_generate" / "generate.py")
        (path / ".metadata").write_bytes(b"x")
    else:
        shutil.copy(path / "model.safetensors", Path(os.fsencode(path / "x").decode()))
        Path(os.fsdecode(os.fsencode(path) + b"/\xff.safetensors")).write_bytes(b"x")


KINDS: list[Callable[[random.Random, Path], None]] = [
    config_entry, config_entry, config_entries, config_added, config_added, config_whole, sizes,
    tensors, tensors, header, damaged_weights, index, tokenizer_entry, tokenizer_damaged,
    tokenizer_other, generation, files,
]  # fmt: skip

COMMANDS: list[tuple[str, ...]] = [
    ("sweep", "{}", "--drop", "--layers", "1", "--tokens", "60", "--context", "16", "--quiet"),
    ("sweep", "{}", "--drop", "--dry-run", "--tokens", "60", "--context", "16", "--quiet"),
    ("generate", "{}", "--schedule", "0..", "--tokens", "3", "--quiet", "a"),
    ("observe", "{}", "neurons", "--quiet"),
    ("sweep", "{}", "--dtype", "float16", "--drop", "--tokens", "60", "--context", "16", "--quiet"),
    ("export", "{}", "--schedule", "1-0", "--quiet", "out"),
]


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail what hangs, in this process, even where it waits for a file."""

    def stop(*_: object) -> None:
        raise AssertionError(f"it ran for more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def build(number: int, bases: dict[str, Path], path: Path) -> list[str]:
    """Make the directory of a case, and return the words of its command."""
    draw = random.Random(number)
    base = draw.choice(sorted(bases))
    shutil.copytree(bases[base], path)
    code = f"open({str(path / MARKER)!r}, 'w').close()\nclass Evil: pass\n"
    for name in ("evil.py", "modeling.py", "conftest.py"):
        (path / name).write_text(code)
    KINDS[number % len(KINDS)](draw, path)
    return [word.format(path) for word in draw.choice(COMMANDS)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(max(1, round(CASES * min(1.0, SHARE)))))
def test_an_odd_directory_is_opened_or_refused_in_one_line_and_runs_nothing(
    number, bases, tmp_path, monkeypatch, capfd
):
    path = tmp_path / "model"
    words = build(number, bases, path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stages", *words])

    def asked(*_: object) -> str:
        raise AssertionError("it asked on standard input")

    monkeypatch.setattr("builtins.input", asked)
    status: Any = 0
    with at_most(LONGEST):
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code
    told = capfd.readouterr().err.strip()
    assert status in (0, 1, 2), told
    assert "Traceback" not in told
    if status == 1:
        assert told.startswith("stages: ")
        assert REMEDY.search(told), told
        assert len(told.splitlines()) == 1
        assert len(told) < 600 + 2 * len(str(path))
    assert not list(tmp_path.rglob(MARKER))
