"""What of transformers' decoders opens, by how much it misses surgery, and what can be measured.

python benchmarks/families.py [--only families|types] [--write docs/families.md] [NAME …]

Every model is tiny, random and float64. The tables are printed, or put in their places in the page.
"""

import argparse
import contextlib
import copy
import io
import logging
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import ModuleList
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KINDS

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from families import LAYERS, SPECS, follow_blocks, random_tokens, rebuilt, tiny  # noqa: E402
from strict import StrictBackend  # noqa: E402
from test_execution import corpus, reference  # noqa: E402

from robustness.errors import Refusal, first_line  # noqa: E402
from robustness.measurements.measurement import MEASUREMENTS  # noqa: E402
from robustness.measurements.prediction_neurons import neurons  # noqa: E402
from robustness.models.block_structure import examine  # noqa: E402
from robustness.models.opening import open_model  # noqa: E402
from robustness.models.structure import find_paths  # noqa: E402
from robustness.schedules import clean, drop, repeat, swap  # noqa: E402
from robustness.schedules.interventions import schedules  # noqa: E402
from robustness.sweeps import residuals, rewire, sweep  # noqa: E402
from robustness.trace.numerics import largest  # noqa: E402

WHOLE = clean(LAYERS)
EDITS = {"drop": drop(WHOLE, 1), "swap": swap(WHOLE, 1), "repeat": repeat(WHOLE, 1, 2)}
MEASURED = ("lens", "cka", "attention", "norms", "similarity")

SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size",
                     "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers",
                     "decoder_layers"), 4),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
         "attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim",
                     "encoder_ffn_dim"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 32),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "v_head_dim", "head_dim",
                     "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim", "rotary_ndims"), 4),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 101),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    "num_experts_per_tok": 2, "num_key_value_heads": 2, "sliding_window": 5, "encoder_layers": 2,
    "is_decoder": True,
}  # fmt: skip
"""What configurations call sizes, made small."""

SETTINGS: dict[str, dict[str, Any]] = {
    **{
        kind: {"head_dim": 4}
        for kind in ("axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa",
                     "youtu", "minicpm3", "longcat_flash")
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4}, "ffn_config": {
        "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2}},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.0] * 4, "laurel_rank": 4, "altup_num_inputs": 2,
    },
    "gemma4_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
        "global_head_dim": 8,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1},
}  # fmt: skip
"""What has to fit together besides."""

MOST_WEIGHTS = 30_000_000
"""Parameters of a model that is still tried."""

CLOSE = 1e-5
"""Largest difference from surgery; some models have logits of float32 whatever their weights."""

SECONDS = 60


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep the libraries quiet."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def surgery(net: Any, schedule: tuple[int, ...]) -> Any:
    """Return a plain model whose module list is the schedule, wherever that list is."""
    parent, _, name = find_paths(net).blocks[0].rpartition(".")[0].rpartition(".")
    edited = copy.deepcopy(net)
    blocks = net.get_submodule(f"{parent}.{name}" if parent else name)
    chosen = ModuleList(copy.deepcopy(blocks[step]) for step in schedule)
    setattr(edited.get_submodule(parent), name, chosen)
    config = edited.config.get_text_config(decoder=True)
    for key in ("num_hidden_layers", "decoder_layers"):
        with contextlib.suppress(AttributeError):
            if hasattr(config, key):
                setattr(config, key, len(schedule))
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == len(blocks) and key.endswith("types"):
            setattr(config, key, [value[step] for step in schedule])
    follow_blocks(edited, schedule)
    return edited


def logits_of(net: Any, tokens: Any) -> Any:
    """Return a plain model's logits."""
    with torch.no_grad():
        return net(input_ids=tokens, use_cache=False).logits


def traced(edited: Any, tokens: Any) -> Any:
    """Return a rewired model's logits."""
    with torch.no_grad(), edited.trace(tokens, use_cache=False):
        logits = edited.output.logits.save()
    return logits


def worst(a: Any, b: Any) -> float:
    """Return the largest difference."""
    return float((a - b).abs().max())


def shown(number: float) -> str:
    """Write a difference."""
    return "0" if number == 0 else f"{number:.0e}"


def row(name: str) -> list[str]:
    """Everything about one family."""
    net = tiny(name)
    model = open_model(tiny(name))
    tokens = random_tokens(3, 11)
    own = logits_of(net, tokens)
    # Block by block, with the model's own norm and head.
    found = [worst(traced(rewire(model, WHOLE), tokens), own)]
    for schedule in EDITS.values():
        expected = logits_of(rebuilt(net, schedule), tokens)
        found.append(worst(traced(rewire(model, schedule), tokens), expected))
    short = corpus(sequences=2)
    named = schedules(("drop", "swap", "repeat-2"), LAYERS)
    expected_of = {key: reference(net, schedule, short) for key, schedule in named.items()}
    for request in ({}, {"backend": StrictBackend(model.traced)}):
        run = model.__class__(**{**vars(model), "request": request})
        data = sweep(run, short, ("drop", "swap", "repeat-2"), batch_tokens=36, state_cap=3)
        found.append(
            largest(
                [
                    abs(data[metric].sel(intervention=key, layer=layer).values - value).max()
                    for (key, layer), values in expected_of.items()
                    for metric, value in values.items()
                ]
            )
        )
    missing = examine(model).missing
    support = ["–" if missing.keys() & MEASUREMENTS[name].needs else "yes" for name in MEASURED]
    try:
        neurons(net)
        support.append("yes")
    except Refusal:
        support.append("–")
    return [name, type(net).__name__, *map(shown, found), *support]


def build(kind: str) -> Any:
    """Return a tiny model of a type that transformers knows, or raise."""
    made = CONFIG_MAPPING[kind]
    names = set(getattr(made, "__dataclass_fields__", {})) | set(getattr(made, "attribute_map", {}))
    own = {**SIZES, **SETTINGS.get(kind, {})}
    subs = getattr(made, "sub_configs", {})
    if "text_config" in subs and "num_hidden_layers" not in names:
        sub = subs["text_config"]
        fields = set(getattr(sub, "__dataclass_fields__", ())) | set(
            getattr(sub, "attribute_map", {})
        )
        config = made(text_config={key: own[key] for key in own if key in fields})
    else:
        config = made(
            **{key: own[key] for key in own if key in names or key in SETTINGS.get(kind, {})}
        )
    config.is_encoder_decoder = False
    with torch.device("meta"):
        size = sum(
            p.numel() for p in AutoModelForCausalLM.from_config(copy.deepcopy(config)).parameters()
        )
    if size > MOST_WEIGHTS:
        raise ValueError(f"no small configuration was found ({size / 1e6:.0f} million parameters)")
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    net.set_experts_implementation("eager")
    with torch.no_grad():
        for path, parameter in net.named_parameters():
            if parameter.ndim == 1 and "norm" in path.lower() and path.endswith("weight"):
                parameter.normal_(mean=1, std=0.3)
    return net


def tried(kind: str) -> tuple[str, str]:
    """Try one type: (outcome, details)."""
    tokens = random_tokens(2, 9)
    try:
        net = build(kind)
        logits_of(net, tokens)
    except Exception as error:
        return "untried", first_line(error)
    try:
        model = open_model(copy.deepcopy(net))
        edited = rewire(model, EDITS["swap"])
        found = traced(edited, tokens)
        residuals(model, tokens, EDITS["swap"])
    except Refusal as refusal:
        reason = str(refusal)
        return "refused", reason.partition(")")[2].partition(": ")[2] or reason.partition(": ")[2]
    except Exception as error:
        return "failed", first_line(error)
    try:
        expected = logits_of(surgery(net, EDITS["swap"]), tokens)
    except Exception:
        return "works", "own logits"
    if worst(expected, logits_of(net, tokens)) == 0:  # the list that was changed is not the one
        return "works", "own logits"
    difference = worst(found, expected)
    return "works" if difference < CLOSE else "failed", shown(difference)


def families(names: Sequence[str]) -> dict[str, str]:
    """Make the table of the families that are tested."""
    heads = ["family", "architecture", "own logits", *EDITS, "sweep", "sweep, strict", *MEASURED,
             "neurons"]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---" * 2 + "|--:" * 6 + "|:-:" * 6 + "|"]
    for name in [each for each in SPECS if not names or each in names]:
        with silence():
            lines.append("| " + " | ".join(row(name)) + " |")
        print(lines[-1], flush=True)
    return {"table": "\n".join(lines)}


def types(names: Sequence[str]) -> dict[str, str]:
    """Make the lists of all types that transformers knows."""

    class Late(BaseException):
        pass

    def late(*_: Any) -> None:
        raise Late

    signal.signal(signal.SIGALRM, late)
    found: dict[str, list[str]] = {"works": [], "refused": [], "failed": [], "untried": []}
    for kind in [each for each in KINDS if not names or each in names]:
        signal.alarm(SECONDS)
        with silence():
            try:
                outcome, details = tried(kind)
            except Late:
                outcome, details = "untried", f"took longer than {SECONDS} s"
        signal.alarm(0)
        print(outcome, kind, details, flush=True)
        shown = f"`{kind}` ({details})" if outcome == "works" else f"| `{kind}` | {details[:160]} |"
        found[outcome].append(shown)
    works, failed = found.pop("works"), found.pop("failed")
    if failed:
        raise SystemExit("neither equal to surgery nor refused:\n" + "\n".join(failed))
    tables = {
        name: "\n".join(["| type | reason |", "|---|---|", *rows]) for name, rows in found.items()
    }
    return {"works": f"{len(works)} types: {', '.join(works)}.", **tables}


def main() -> None:
    """Make the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--only", choices=("families", "types"))
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    transformers.logging.set_verbosity(logging.CRITICAL)
    # Threads cost tiny models more than they give.
    torch.set_num_threads(1)
    tables = {}
    for make in (families, types):
        if options.only in (None, make.__name__):
            tables |= make(options.names)
    if options.write:
        page = options.write.read_text()
        for name, text in tables.items():
            page = re.sub(
                rf"(<!-- {name} -->\n).*?(<!-- end -->)",
                lambda match, text=text: f"{match[1]}\n{text}\n\n{match[2]}",
                page,
                flags=re.DOTALL,
            )
        options.write.write_text(page)


if __name__ == "__main__":
    main()
