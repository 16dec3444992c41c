"""Checks of a model before it is opened: its files, its configuration, its tokenizer.

transformers trusts a configuration: it multiplies lists by a number of layers, names files to read
and code to fetch. Whatever decides on memory, on files and on code is therefore checked before
transformers sees it; the rest, such as the types of entries, transformers checks itself.
"""

import json
import math
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from robustness.errors import Refusal

REMEDY = "fetch it anew, or write it again with save_pretrained"
"""Advice for a directory whose files have changed since they were written."""

ADAPTER = (
    "{} holds an adapter (adapter_config.json), which is not read: merge it into the weights with "
    "peft, or remove it"
)

LARGEST_FILE = 2**26
"""Maximum number of bytes of a file of settings."""

DEEPEST_ENTRY = 32
"""Maximum depth of the entries of a configuration."""

MAXIMA = {"layer": 2**12, "head": 2**16, "expert": 2**16}
"""Maximum values of entries with these words in their names: transformers makes lists and modules
of that length."""

WEIGHT_TYPES = ("float64", "float32", "bfloat16", "float16", "auto")
"""Types that a checkpoint's weights may have, by the names that configurations have for them."""

SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)
"""Names of sizes that all families share; each is above 0 if it is set."""

NORM_EPSILONS = (
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "norm_epsilon",
    "norm_eps",
)
"""Names that families have for the number that their norms add to the variance."""

ROPE_FACTORS = {"factor", "rope_theta", "short_factor", "long_factor", "high_freq_factor"}
"""Names of numbers in the settings of rotary positions, each above 0."""

OTHER_WEIGHT_SOURCES = ("transformers_weights", "distributed_config")
"""Entries of a configuration that make transformers read weights from other files."""

SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Names of the JSON files that transformers reads in a directory; each holds an object."""

DISTRIBUTED_FILES = "shard-*-model-*-of-*.safetensors"
"""Pattern of the files of a checkpoint in the format of torch's distributed training."""


def check_directory(directory: Path) -> None:
    """Refuse a directory that holds anything but files and directories, or damaged settings.

    Reading from a pipe or a device in the place of a file might never end. Links are followed.

    Raises
    ------
    Refusal
        With the name of what is wrong.
    """
    name = directory.name
    for path in sorted(directory.iterdir()):
        _check_file(name, path)
        if path.name in SETTINGS:
            read_object(name, path)
    templates = directory / "additional_chat_templates"
    for path in sorted(templates.iterdir()) if templates.is_dir() else ():
        _check_file(name, path)
    if (directory / "adapter_config.json").exists():
        raise Refusal(ADAPTER.format(name))
    if next(directory.glob(DISTRIBUTED_FILES), None) is not None:
        raise Refusal(
            f"{name} is a checkpoint of distributed training, which is not read: load it with "
            "transformers and save_pretrained"
        )


def _check_file(name: str, path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise Refusal(
            f"{name} holds {path.name}, which leads nowhere ({error.strerror}): {REMEDY}"
        ) from error
    if stat.S_ISDIR(mode) and path.suffix in {".json", ".safetensors"}:
        raise Refusal(f"{name} holds a directory {path.name} in the place of a file: {REMEDY}")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise Refusal(f"{name} holds {path.name}, which is neither file nor directory: remove it")


def read_object(name: str, path: Path) -> dict[str, Any]:
    """Read a file of settings: an object of JSON, not too large, and not nested too deep.

    Parameters
    ----------
    name : str
        Name of the model, for messages.
    path : Path
        A file.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise Refusal(f"{name}: {path.name} has more than {LARGEST_FILE >> 20} MiB: {REMEDY}")
    try:
        content = json.loads(path.read_bytes().decode())
    except RecursionError as error:
        raise Refusal(f"{name}: {path.name} is nested too deep: {REMEDY}") from error
    except ValueError as error:
        raise Refusal(f"{name}: {path.name} is no JSON ({error}): {REMEDY}") from error
    if not isinstance(content, dict):
        raise Refusal(f"{name}: {path.name} holds no object: {REMEDY}")
    if any(len(keys) > DEEPEST_ENTRY for keys, _ in _entries(content)):
        raise Refusal(f"{name}: {path.name} is nested too deep: {REMEDY}")
    return content


def _entries(whole: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the keys that lead to every entry of nested objects and lists, and the entry.

    Entries are yielded down to one level below `DEEPEST_ENTRY`, so that deeper ones are noticed.
    """
    # A list of what is left, since recursion could be exhausted by the very files to refuse.
    waiting: list[tuple[tuple[str, ...], Any]] = [((), whole)]
    while waiting:
        keys, value = waiting.pop()
        if keys:
            yield keys, value
        if len(keys) > DEEPEST_ENTRY:
            continue
        inner: Any = ()
        if isinstance(value, dict):
            inner = value.items()
        elif isinstance(value, list):
            inner = enumerate(value)
        for key, each in inner:
            waiting.append(((*keys, str(key)), each))


def check_entries(name: str, entries: Mapping[str, Any]) -> None:
    """Refuse a configuration whose entries would exhaust memory, or read files or code elsewhere.

    Parameters
    ----------
    name : str
        Name of the model, for messages.
    entries : mapping of str to object
        Content of its `config.json`.
    """
    for keys, value in _entries(dict(entries)):
        said = f"{name}: config.json says {'.'.join(keys)} = {_shown(value)}"
        if keys[-1] == "quantization_config":
            check_quantisation(name, value)
        _check_number(said, keys[-1], value)
        _check_source(said, keys[-1], value)
        if keys[-1] in {"dtype", "torch_dtype"}:
            _check_type(said, value)
        if keys[-1] in {"rope_parameters", "rope_scaling"}:
            _check_rope(said, value)


def _check_number(said: str, key: str, value: Any) -> None:
    """Refuse NaN, and counts of which transformers would make too many modules."""
    if isinstance(value, float) and math.isnan(value):
        raise Refusal(f"{said}, which is no number: {REMEDY}")
    for word, most in MAXIMA.items():
        if word in key and isinstance(value, (int, float)) and abs(value) > most:
            raise Refusal(f"{said}, more than {most}: {REMEDY}")


def _check_source(said: str, key: str, value: Any) -> None:
    """Refuse entries that have transformers read code or weights from elsewhere."""
    # For a name with a slash, transformers fetches a kernel from the hub and runs it.
    if key.lstrip("_") in {"attn_implementation", "experts_implementation"}:
        if isinstance(value, str) and not value.replace("_", "").isalnum():
            raise Refusal(f"{said}, which may be code from elsewhere: remove that entry")
    unusable = key in OTHER_WEIGHT_SOURCES and value is not None
    if unusable or (key == "return_dict" and not value):
        raise Refusal(f"{said}, which cannot be used here: remove that entry")
    if key == "model_type" and not isinstance(value, str):
        raise Refusal(f"{said}, which is no type of model: {REMEDY}")


def check_quantisation(name: str, entry: Any) -> None:
    """Refuse quantised weights, as the entry of a configuration describes them."""
    if entry:
        method = entry.get("quant_method") if isinstance(entry, dict) else None
        raise Refusal(
            f"{name} has quantised weights ({method or 'of some kind'}): open the checkpoint that "
            "they were made of"
        )


def _check_type(said: str, value: Any) -> None:
    """Refuse types of weights that nothing is computed in."""
    # Models of several parts, such as one for pictures, have an object with a type for each.
    for dtype in value.values() if isinstance(value, dict) else (value,):
        usable = isinstance(dtype, str) and dtype.removeprefix("torch.") in WEIGHT_TYPES
        if dtype is not None and not usable:
            raise Refusal(f"{said}, which is none of {', '.join(WEIGHT_TYPES[:-1])}: {REMEDY}")


def _check_rope(said: str, value: Any) -> None:
    """Refuse settings of rotary positions whose numbers are not above 0."""
    if value is not None and not isinstance(value, dict):
        raise Refusal(f"{said}, which is no object: {REMEDY}")
    for keys, number in _entries(value or {}):
        if not ROPE_FACTORS & set(keys) or number is None or isinstance(number, (dict, list)):
            continue
        good = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not (good and 0 < number < math.inf):
            raise Refusal(
                f"{said.partition(' = ')[0]} with {'.'.join(keys)} = {_shown(number)}, which is no "
                f"number above 0: {REMEDY}"
            )


def _shown(value: Any) -> str:
    """Return a value as one short word of a message."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."


def check_config(name: str, config: PreTrainedConfig) -> None:
    """Refuse a configuration that no decoder can be built from.

    Parameters
    ----------
    name : str
        Name of the model, for messages.
    config : PreTrainedConfig
        Configuration of the language model, under the names that all families share.
    """
    if getattr(config, "is_heterogeneous", False):
        return  # layers differ in size, and reading the one size of all raises an error
    for key in SIZES:
        _check_size(name, key, getattr(config, key, None))
    width, heads = (getattr(config, key, None) for key in ("hidden_size", "num_attention_heads"))
    # The width need not be a multiple of the heads where heads have a width of their own.
    own = any(getattr(config, key, None) for key in ("head_dim", "kv_channels", "qk_head_dim"))
    if isinstance(width, int) and isinstance(heads, int) and not own and width % heads:
        raise Refusal(
            f"{name}: config.json says {heads} attention heads, which do not divide the width "
            f"{width}: {REMEDY}"
        )
    for key in NORM_EPSILONS:
        value = getattr(config, key, None)
        if isinstance(value, (int, float)) and not 0 <= value < math.inf:
            raise Refusal(f"{name}: config.json says {key} = {value}, below 0: {REMEDY}")


def _check_size(name: str, key: str, value: Any) -> None:
    """Refuse a size that is no whole number above 0; some families have one for every layer."""
    sizes = value if isinstance(value, (list, tuple)) else [value]
    for size in sizes:
        whole = isinstance(size, int) and not isinstance(size, bool)
        if size is not None and not (whole and size > 0):
            raise Refusal(
                f"{name}: config.json says {key} = {_shown(size)}, which is no whole number above "
                f"0: {REMEDY}"
            )


def check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Refuse a tokenizer without tokens, or whose tokens the model does not know.

    Added tokens may be unknown to the model, unless texts begin or end with them: many checkpoints
    have a padding token that the model never learnt.

    Parameters
    ----------
    name : str
        Name of the model, for messages.
    tokenizer
        Tokenizer of the model.
    vocabulary : int
        Number of tokens that the model knows.
    """
    vocabulary_ids = tokenizer.get_vocab()
    added = set(tokenizer.get_added_vocab())
    own = [number for token, number in vocabulary_ids.items() if token not in added]
    if not own:
        raise Refusal(f"{name} has no tokenizer: none of its files has a vocabulary: {REMEDY}")
    ends = {f"its {key}": getattr(tokenizer, key, None) for key in ("bos_token_id", "eos_token_id")}
    for what, number in {"a token": max(own), **ends}.items():
        if number is not None and number >= vocabulary:
            raise Refusal(
                f"{name}: the tokenizer is not the model's: {what} has the number {number}, and "
                f"the model knows {vocabulary} tokens: {REMEDY}"
            )
