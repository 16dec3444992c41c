"""Hashes that tell weights and configurations apart, and the tensors that they are of."""

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
"""The entry of a configuration that says what a checkpoint of another order was made of."""

VOLATILE = {
    "_name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    ORIGIN,
    # RWKV's halving of the residual stream is turned off when it is opened.
    "rescale_every",
}
"""Entries of a configuration that say nothing of the function that the model computes."""


def stored_tensors(module: Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what a checkpoint holds of a module by name, wherever accelerate keeps it."""
    for name in module.state_dict():
        owner, _, leaf = name.rpartition(".")
        part = module.get_submodule(owner)
        with align_module_device(part):
            yield name, getattr(part, leaf)


def hash_config(config: PreTrainedConfig) -> str:
    """Hash what a configuration says of the function that the model computes."""
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
        digest.update(whole.view(uint8).numpy().tobytes())
    return digest.hexdigest()
