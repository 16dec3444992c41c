"""Checkpoints on disk and on the hub: what a name stands for, its configuration, its weights."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device
from safetensors import SafetensorError
from torch.nn import Module
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from robustness.refusal import Refusal, first_line

BUILTIN = {"builtin": "sequential", "builtin-parallel": "parallel"}
"""The models shipped with the project, and their directories."""

ORIGIN = "stages"
"""The entry of a configuration that says what a checkpoint of another order was made of."""

LOADING_ERRORS = (OSError, ValueError, RuntimeError, LookupError, AttributeError, TypeError)
"""What transformers raises over a checkpoint that is damaged or does not fit its configuration."""


def resolve(source: str | Path) -> tuple[str, str]:
    """Return the name of a model, and the directory or hub id it is loaded from."""
    if source in BUILTIN:
        directory = Path(str(files("robustness"))) / "builtin" / BUILTIN[str(source)]
        return str(source), str(directory)
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise Refusal(f"the directory {source} has no config.json: it is not a model")
        return path.resolve().name, str(path)
    if path.exists():
        raise Refusal(f"{source} is a file; a model is a directory with a config.json")
    if isinstance(source, Path) or str(source).startswith((".", "/", "~")):
        raise Refusal(f"there is no directory {source}")
    return str(source), str(source)


def read_config(name: str, path: str, revision: str | None, trust: bool) -> Any:
    """Read the configuration of a model, and refuse what is no decoder."""
    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        raise Refusal(
            f"there is no model {name!r} to open: give {' or '.join(BUILTIN)}, a directory with a "
            f"config.json, or a hub id that can be reached ({first_line(error)})"
        ) from error
    kind = getattr(config, "model_type", "") or type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise Refusal(f"{name} ({kind}) is an encoder-decoder; only decoders can be opened")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not trust:
        raise Refusal(f"{name} ({kind}) is not a decoder that transformers can load")
    # Families that fill in masks, as BERT does, decode only where their configuration says so.
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise Refusal(f"{name} ({kind}) is an encoder; only decoders can be opened")
    check_quantised(name, config)
    return config


def check_quantised(name: str, config: Any) -> None:
    """Refuse weights that are not what is computed with."""
    found = getattr(config, "quantization_config", None)
    if found:
        found = found if isinstance(found, dict) else found.to_dict()
        raise Refusal(
            f"{name} has quantised weights ({found.get('quant_method', 'of some kind')}): open the "
            "checkpoint that they were made of"
        )


def commit(path: str, revision: str | None) -> str:
    """Return the commit of a model that was opened from the hub; empty for a directory."""
    found = cached_file(path, "config.json", revision=revision, local_files_only=True)
    return extract_commit_hash(found, None) or ""


def load(name: str, path: str, **options: Any) -> tuple[Module, Any]:
    """Load weights and tokenizer, and refuse a checkpoint that does not hold all its weights."""
    where = {key: options[key] for key in ("revision", "trust_remote_code")}
    try:
        module, found = AutoModelForCausalLM.from_pretrained(
            path, use_safetensors=True, output_loading_info=True, **options
        )
    except (*LOADING_ERRORS, ImportError, SafetensorError) as error:
        pickled = Path(path).is_dir() and not any(Path(path).glob("*.safetensors"))
        pickled = pickled and any(Path(path).glob("*.bin"))
        if pickled:
            raise Refusal(
                f"{name} has its weights in pickles (.bin), which can run code and are not read: "
                "load it with transformers and save_pretrained, which writes safetensors"
            ) from error
        raise Refusal(f"{name} cannot be loaded: {first_line(error)}") from error
    wrong = sorted(found["missing_keys"]) or sorted(map(str, found["mismatched_keys"]))
    if wrong:
        raise Refusal(
            f"{name} cannot be loaded: {len(wrong)} of the weights that its config.json asks for "
            f"are not in the checkpoint, {wrong[0]} first"
        )
    return module.eval(), load_tokenizer(name, path, **where)


def load_tokenizer(name: str, path: str, **options: Any) -> Any:
    """Load the tokenizer of a model."""
    try:
        return AutoTokenizer.from_pretrained(path, **options)
    except (*LOADING_ERRORS, ImportError) as error:
        raise Refusal(f"{name} has no tokenizer that can be loaded: {first_line(error)}") from error


def hash_config(config: Any) -> str:
    """Hash what a configuration says of the function that the model computes."""
    volatile = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", ORIGIN}
    kept = {key: value for key, value in config.to_dict().items() if key not in volatile}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_directory(directory: Path) -> str:
    """Hash the weights in a directory."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def hash_module(module: Module) -> str:
    """Hash the weights of a module, wherever accelerate keeps them."""
    digest = hashlib.sha256()
    for name in module.state_dict():
        owner, _, leaf = name.rpartition(".")
        part = module.get_submodule(owner)
        digest.update(name.encode())
        with align_module_device(part):
            tensor = getattr(part, leaf).detach().cpu()
            digest.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
