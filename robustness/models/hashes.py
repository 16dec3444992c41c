"""Hashes of weights and configurations, which tell models apart."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from accelerate.utils import align_module_device
from torch import Tensor, uint8
from torch.nn import Module
from transformers import PreTrainedConfig

ORIGIN = "stages"
"""Entry of an exported checkpoint's configuration: the model and the schedule it was made of."""

VOLATILE = {
    "_name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    ORIGIN,
    # Opening turns off RWKV's halving of the residual stream, which changes this entry.
    "rescale_every",
}
"""Entries of a configuration that have no influence on the function that the model computes."""


def stored_tensors(module: Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module's checkpoint by name, wherever accelerate keeps them."""
    for name in module.state_dict():
        owner, _, leaf = name.rpartition(".")
        part = module.get_submodule(owner)
        with align_module_device(part):
            yield name, getattr(part, leaf)


def hash_config(config: PreTrainedConfig) -> str:
    """Hash the entries of a configuration that decide which function the model computes."""
    kept = {key: value for key, value in config.to_dict().items() if key not in VOLATILE}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_directory(directory: Path) -> str:
    """Hash the weights in a directory."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        digest.update(os.fsencode(path.name))
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def hash_module(module: Module) -> str:
    """Hash the weights of a module, wherever accelerate keeps them."""
    digest = hashlib.sha256()
    for name, tensor in stored_tensors(module):
        digest.update(name.encode())
        whole = tensor.detach().cpu().reshape(-1).contiguous()
        # As bytes, since numpy has no bfloat16.
        digest.update(whole.view(uint8).numpy().tobytes())
    return digest.hexdigest()
