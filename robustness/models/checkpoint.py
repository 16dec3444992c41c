"""Checkpoints on disk and on the hub: their names, configurations, weights and tokenizers."""

import copy
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from torch.nn import Module
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import cached_file, is_peft_available
from transformers.utils.hub import extract_commit_hash

from robustness.errors import Refusal, first_line, reading
from robustness.models import contract
from robustness.models.hashes import stored_tensors

BUILTIN = {"builtin": "sequential", "builtin-parallel": "parallel"}
"""Directories of the models shipped with the project, by name."""

LESS_MEMORY = (
    "give `dtype` bfloat16, or `device_map` auto, which keeps on the disk what does not fit"
)
"""Advice for weights that do not fit into memory."""

LOADING_ERRORS = (OSError, ValueError, RuntimeError, LookupError, AttributeError, TypeError)
"""Errors that transformers raises for a checkpoint that is damaged or does not fit its
configuration."""


def resolve(source: str | Path) -> tuple[str, str]:
    """Return the name of a model, and the directory or hub id it is loaded from."""
    if source in BUILTIN:
        directory = Path(str(files("robustness"))) / "builtin" / BUILTIN[str(source)]
        return str(source), str(directory)
    path = Path(source).expanduser()
    if "\0" in str(source) or not _is_unicode(str(source)):
        raise Refusal(f"{str(source)!r} is no name of a model: rename it in UTF-8")
    if path.is_dir():
        if not (path / "config.json").exists():
            raise Refusal(f"the directory {source} has no config.json: it is not a model")
        return path.resolve().name, str(path)
    if path.exists():
        raise Refusal(f"{source} is a file; a model is a directory with a config.json")
    if isinstance(source, Path) or str(source).startswith((".", "/", "~")):
        raise Refusal(f"there is no directory {source}")
    return str(source), str(source)


def _is_unicode(text: str) -> bool:
    """Whether a text, such as a name that the system gave, can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_config(name: str, path: str, revision: str | None, trust: bool) -> PreTrainedConfig:
    """Read the configuration of a model, and refuse a damaged one, or one of no decoder.

    The other files of a directory are checked here, too, before anything reads them.
    """
    if Path(path).is_dir():
        if revision is not None:
            raise Refusal(f"{name} is a directory, which has no revisions: leave out `revision`")
        with reading(f"the model {name}", contract.REMEDY):
            contract.check_directory(Path(path))
    with reading(f"the configuration of {name}", contract.REMEDY):
        entries = contract.read_object(name, _config_file(name, path, revision))
        contract.check_entries(name, entries)
        try:
            config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust)
        except (OSError, ValueError) as error:
            if entries.get("auto_map") and not trust:
                raise Refusal(
                    f"{name} needs code that comes with it ({entries['model_type']}): "
                    "`trust_remote_code` runs that code, if you have read it"
                ) from error
            raise Refusal(
                f"{name} cannot be opened: {first_line(error)}: {contract.REMEDY}"
            ) from error
        _check_kind(name, config, trust)
        contract.check_config(name, config.get_text_config(decoder=True))
    return config


def _config_file(name: str, path: str, revision: str | None) -> Path:
    """Return the path of a model's configuration, and refuse a model with an adapter beside it."""
    try:
        file = cached_file(path, "config.json", revision=revision)
        # Where the library peft is installed, transformers merges an adapter without a word.
        adapter = is_peft_available() and cached_file(
            path,
            "adapter_config.json",
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError) as error:
        raise Refusal(
            f"there is no model {name!r} to open: give {' or '.join(BUILTIN)}, a directory with a "
            f"config.json, or a hub id that can be reached ({first_line(error)})"
        ) from error
    if file is None:
        raise Refusal(f"{name} has no config.json: it is not a model; give one that has")
    if adapter:
        raise Refusal(contract.ADAPTER.format(name))
    return Path(file)


def _check_kind(name: str, config: PreTrainedConfig, trust: bool) -> None:
    """Refuse a model that is no decoder, or whose weights are quantised."""
    kind = getattr(config, "model_type", "") or type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise Refusal(f"{name} ({kind}) is an encoder-decoder; only decoders can be opened")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not trust:
        raise Refusal(f"{name} ({kind}) is not a decoder that transformers can load")
    # Masked language models, such as BERT, decode only if their configuration says so.
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise Refusal(f"{name} ({kind}) is an encoder; only decoders can be opened")
    check_quantised(name, config)


def sketch(name: str, config: PreTrainedConfig, trust: bool) -> PreTrainedModel:
    """Build a model without weights, to compare the names and shapes of a checkpoint with."""
    with reading(f"the model {name}", contract.REMEDY), torch.device("meta"):
        try:
            module = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), trust_remote_code=trust
            )
        except (*LOADING_ERRORS, ImportError) as error:
            raise Refusal(
                f"{name} cannot be loaded: no model can be built as its config.json says "
                f"({first_line(error)}): {contract.REMEDY}"
            ) from error
    # Buffers, such as masks, are in no checkpoint: the size of its files does not bound them.
    tables = sum(table.nbytes for table in module.buffers())
    memory = psutil.virtual_memory().total + psutil.swap_memory().total
    if tables > memory:
        raise Refusal(
            f"{name} cannot be loaded: its config.json asks for tables of {tables / 1e9:,.0f} GB, "
            f"and this machine has {memory / 1e9:,.0f} GB: {contract.REMEDY}"
        )
    return module


def check_quantised(name: str, config: PreTrainedConfig) -> None:
    """Refuse quantised weights."""
    method = getattr(config, "quantization_config", None)
    if method is not None:
        contract.check_quantisation(name, method if isinstance(method, dict) else method.to_dict())


def commit(path: str, revision: str | None) -> str:
    """Return the commit of a model that was opened from the hub; empty for a directory."""
    # The path of a cached file names its commit: no connection is needed, and no branch can move.
    file = cached_file(path, "config.json", revision=revision, local_files_only=True)
    return extract_commit_hash(file, None) or ""


def load(name: str, path: str, **options: Any) -> tuple[Module, PreTrainedTokenizerBase]:
    """Load weights and tokenizer, and refuse a checkpoint that does not hold all its weights."""
    where = {key: options[key] for key in ("revision", "trust_remote_code")}
    with reading(f"the model {name}", contract.REMEDY):
        try:
            # Mismatches are reported below, by name and shape: the error of transformers only
            # points to a table in its log.
            module, loading = AutoModelForCausalLM.from_pretrained(
                path,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
        except (*LOADING_ERRORS, ImportError, SafetensorError, MemoryError) as error:
            full = isinstance(error, MemoryError) or "memory" in str(error).lower()
            remedy = LESS_MEMORY if full else contract.REMEDY
            raise Refusal(f"{name} cannot be loaded: {first_line(error)}: {remedy}") from error
        for weight, stored, expected in sorted(loading["mismatched_keys"], key=str):
            raise Refusal(
                f"{name} cannot be loaded: {weight} is of shape {tuple(stored)} in the checkpoint "
                f"and {tuple(expected)} by its config.json: {contract.REMEDY}"
            )
        # transformers would fill these with random numbers.
        missing = sorted(loading["missing_keys"])
        if missing:
            raise Refusal(
                f"{name} cannot be loaded: {len(missing)} of the weights that its config.json asks "
                f"for are not in the checkpoint, {missing[0]} first: {contract.REMEDY}"
            )
        check_finite(name, module)
        tokenizer = load_tokenizer(name, path, **where)
        contract.check_tokenizer(name, tokenizer, module.config.get_text_config().vocab_size)
    return module.eval(), tokenizer


def load_tokenizer(name: str, path: str, **options: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model."""
    with reading(f"the tokenizer of {name}", contract.REMEDY):
        try:
            return AutoTokenizer.from_pretrained(path, **{"trust_remote_code": False} | options)
        except (*LOADING_ERRORS, ImportError) as error:
            if "trust_remote_code" in str(error):
                raise Refusal(
                    f"the tokenizer of {name} is code of its own (auto_map), which is not run: "
                    "give `trust_remote_code`, or put a tokenizer.json in its place"
                ) from error
            raise Refusal(
                f"{name} has no tokenizer that can be loaded: {first_line(error)}: "
                f"{contract.REMEDY}"
            ) from error


def check_finite(name: str, module: Module) -> None:
    """Refuse weights that hold NaN or infinity, and say whether their type is too small."""
    for weight, tensor in stored_tensors(module):
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # `aminmax` needs no copy of the weights, and returns NaN if any number is NaN.
        least, most = map(float, torch.aminmax(tensor.detach()))
        if least != least:
            raise Refusal(f"{name}: {weight} holds NaN: {contract.REMEDY}")
        if math.inf in (-least, most):
            kind = str(tensor.dtype).removeprefix("torch.")
            remedy = contract.REMEDY
            if tensor.dtype == torch.float16:
                remedy = "use `dtype` bfloat16 or float32, which hold larger numbers"
            raise Refusal(f"{name}: {weight} holds infinity as {kind}: {remedy}")
