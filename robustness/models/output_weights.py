"""Weights of a decoder that write to the vocabulary, read without building the model."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Linear, Module

from robustness.errors import Refusal
from robustness.errors import reading as guarded
from robustness.models import checkpoint
from robustness.models.contract import REMEDY, check_tokenizer
from robustness.models.model import affine, find_paths, is_norm, oriented
from robustness.models.tensor_files import Tensors


@dataclass(frozen=True, eq=False)
class Weights:
    """What is read, and what is known of it."""

    unembedding: Tensor
    """(token, width), float32."""
    gain: Tensor | None
    """What the final norm multiplies by, (width,); None without a norm."""
    centres: bool
    """Whether the final norm takes the mean over features out."""
    down: Callable[[int], Tensor]
    """Of a layer, what its MLP's neurons write: (neuron, width), float32."""
    layers: int
    neurons: int
    """Of an MLP."""
    gated: bool
    """Whether neurons are products of two readings, whose sign is not fixed."""
    tokens: int | None
    """How many rows of the unembedding belong to tokens; None where there is no tokenizer."""
    identity: dict[str, str]


def open_weights(
    source: str | Path | Module, revision: str | None = None, trust_remote_code: bool = False
) -> Weights:
    """Open what of a decoder writes to the vocabulary; source and errors as for `open_model`."""
    if isinstance(source, Module):
        module: Any = source
        tokens = None
        tensors: Any = source.state_dict()
        identity = {
            "model": type(source).__name__,
            "weights_sha256": checkpoint.hash_module(source),
        }
    else:
        name, path = checkpoint.resolve(source)
        config = checkpoint.read_config(name, path, revision, trust_remote_code)
        module = checkpoint.sketch(name, config, trust_remote_code)
        with guarded(f"the checkpoint of {name}", REMEDY):
            tensors = Tensors(path, module, revision)
        tokenizer = checkpoint.load_tokenizer(
            name, path, revision=revision, trust_remote_code=trust_remote_code
        )
        check_tokenizer(name, tokenizer, module.config.get_text_config().vocab_size)
        tokens = len(tokenizer)
        identity = {"model": name, "revision": checkpoint.commit(path, revision)}
        if Path(path).is_dir():
            identity["weights_sha256"] = checkpoint.hash_directory(Path(path))
    identity |= {
        "config_sha256": checkpoint.hash_config(module.config),
        "architecture": type(module).__name__,
    }
    paths = find_paths(module)
    name = f"{identity['model']} ({identity['architecture']})"
    if len(paths.writers) != len(paths.blocks):
        raise Refusal(f"{name}: an MLP made of matrices was found in {len(paths.writers)} blocks")
    if any(after for _, (_, _, after, _) in paths.sublayers):
        raise Refusal(
            f"{name} puts a norm between MLP and residual stream: what its neurons write is not in "
            "their weights alone"
        )
    reading, writing = (
        oriented(part, part.weight)
        for part in map(module.get_submodule, (paths.readers[0][0], paths.writers[0]))
    )
    outer, inner = reading.shape[0], writing.shape[1]

    def down(layer: int) -> Tensor:
        part = module.get_submodule(paths.writers[layer])
        return oriented(part, tensors[f"{paths.writers[layer]}.weight"]).T.float().cpu()

    embedding = next(
        p for p, part in module.named_modules() if part is module.get_input_embeddings()
    )
    tied = module.config.get_text_config().tie_word_embeddings
    unembedding = tensors[f"{embedding if tied else paths.head}.weight"].float().cpu()
    gain, centres = None, False
    for place, path in reversed(list(enumerate(paths.norms))):
        part = copy.deepcopy(module.get_submodule(path)).to_empty(device="cpu").float()
        part.load_state_dict({name: tensors[f"{path}.{name}"] for name in part.state_dict()})
        if isinstance(part, Linear):
            unembedding = unembedding @ part.weight.detach()
        elif place or not is_norm(part, unembedding.shape[1]):
            raise Refusal(
                f"{name}: {path} ({type(part).__name__}) stands between the last block and the "
                "unembedding, and is neither a matrix nor the one norm of the residual stream: "
                "what neurons write to the vocabulary is not in their weights alone"
            )
        else:
            gain, _, centres = affine(part, unembedding.shape[1])
    return Weights(
        unembedding=unembedding,
        gain=gain,
        centres=centres,
        down=down,
        layers=len(paths.blocks),
        neurons=inner,
        gated=len(paths.readers[0]) > 1 or outer == 2 * inner,
        tokens=tokens,
        identity=identity,
    )
