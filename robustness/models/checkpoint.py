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
"""What to ask for where weights do not fit into memory."""

LOADING_ERRORS = (OSError, ValueError, RuntimeError, LookupError, AttributeError, TypeError)
"""Errors that transformers raises over a checkpoint that is damaged or does not fit its
configuration."""


def resolve(source: str | Path) -> tuple[str, str]:
    """Return the name of a model, and the directory or hub id it is loaded from."""
    if source in BUILTIN:
        directory = Path(str(files("robustness"))) / "builtin" / BUILTIN[str(source)]
        return str(source), str(directory)
    path = Path(source).expanduser()
    if "\0" in str(source) or not _is_unicode(str(source)):
        raise Refusal(f"{str(source)!r} is no name of a model: rename it to what is UTF-8")
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
    """Read the configuration of a model, and refuse what is damaged or no decoder.

    A directory is checked for what else it holds, so that nothing else need be when it is read.
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
    """Return where the configuration of a model is, and refuse one that has an adapter besides."""
    try:
        file = cached_file(path, "config.json", revision=revision)
        # With the library peft, transformers would add an adapter without a word.
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
    """Refuse what is no decoder, or no decoder of plain weights."""
    kind = getattr(config, "model_type", "") or type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise Refusal(f"{name} ({kind}) is an encoder-decoder; only decoders can be opened")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not trust:
        raise Refusal(f"{name} ({kind}) is not a decoder that transformers can load")
    # Families that fill in masks, as BERT does, decode only where their configuration says so.
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise Refusal(f"{name} ({kind}) is an encoder; only decoders can be opened")
    check_quantised(name, config)


def sketch(name: str, config: PreTrainedConfig, trust: bool) -> PreTrainedModel:
    """Build a model without weights, of which a checkpoint must hold all that it asks for."""
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
    # Tables that are in no checkpoint, and whose size nothing else bounds.
    tables = sum(table.nbytes for table in module.buffers())
    memory = psutil.virtual_memory().total + psutil.swap_memory().total
    if tables > memory:
        raise Refusal(
            f"{name} cannot be loaded: its config.json asks for tables of {tables / 1e9:,.0f} GB, "
            f"and this machine has {memory / 1e9:,.0f} GB: {contract.REMEDY}"
        )
    return module


def check_quantised(name: str, config: PreTrainedConfig) -> None:
    """Refuse weights that are not what is computed with."""
    found = getattr(config, "quantization_config", None)
    if found is not None:
        contract.check_quantisation(name, found if isinstance(found, dict) else found.to_dict())


def commit(path: str, revision: str | None) -> str:
    """Return the commit of a model that was opened from the hub; empty for a directory."""
    found = cached_file(path, "config.json", revision=revision, local_files_only=True)
    return extract_commit_hash(found, None) or ""


def load(name: str, path: str, **options: Any) -> tuple[Module, PreTrainedTokenizerBase]:
    """Load weights and tokenizer, and refuse a checkpoint that does not hold all its weights."""
    where = {key: options[key] for key in ("revision", "trust_remote_code")}
    with reading(f"the model {name}", contract.REMEDY):
        try:
            # Told by name and shape here; transformers would tell of a table that it has logged.
            module, found = AutoModelForCausalLM.from_pretrained(
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
        for weight, there, asked in sorted(found["mismatched_keys"], key=str):
            raise Refusal(
                f"{name} cannot be loaded: {weight} is of shape {tuple(there)} in the checkpoint "
                f"and {tuple(asked)} by its config.json: {contract.REMEDY}"
            )
        missing = sorted(found["missing_keys"])
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
    """Refuse weights that are not numbers, by name, and say whether their type is too small."""
    for weight, tensor in stored_tensors(module):
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # Without a copy of the weights; both are NaN where one number is.
        least, most = map(float, torch.aminmax(tensor.detach()))
        if least != least:
            raise Refusal(f"{name}: {weight} holds NaN: {contract.REMEDY}")
        if math.inf in (-least, most):
            kind = str(tensor.dtype).removeprefix("torch.")
            remedy = contract.REMEDY
            if tensor.dtype == torch.float16:
                remedy = "use `dtype` bfloat16 or float32, which hold larger numbers"
            raise Refusal(f"{name}: {weight} holds infinity as {kind}: {remedy}")
