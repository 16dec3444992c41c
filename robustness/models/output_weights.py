"""Weights of a decoder that map neurons to the vocabulary, read without loading the model."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Linear, Module

from robustness.errors import Refusal, reading
from robustness.models import checkpoint, hashes
from robustness.models.contract import REMEDY, check_tokenizer
from robustness.models.matrices import oriented
from robustness.models.norms import acts_as_norm, affine
from robustness.models.structure import Paths, find_paths
from robustness.models.tensor_files import Tensors


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights between the neurons of MLPs and the vocabulary, and facts about them."""

    unembedding: Tensor
    """(token, width), float32."""
    gain: Tensor | None
    """Gain of the final norm, (width,); None without a norm."""
    centres: bool
    """Whether the final norm subtracts the mean over features."""
    down: Callable[[int], Tensor]
    """Function from a layer to the output weights of its neurons: (neuron, width), float32."""
    layers: int
    """Number of blocks."""
    neurons: int
    """Number of neurons of an MLP."""
    gated: bool
    """Whether neurons are products of two linear readings, so that their sign is not fixed."""
    tokens: int | None
    """Number of rows of the unembedding that belong to tokens; None without a tokenizer."""
    identity: dict[str, str]
    """Name and origin of the model, as files keep them."""


@dataclass(frozen=True, eq=False)
class _Source:
    """A module, with or without weights, and its tensors by name."""

    module: Any
    tensors: Mapping[str, Tensor] | Tensors
    tokens: int | None
    identity: dict[str, str]

    @property
    def title(self) -> str:
        return f"{self.identity['model']} ({type(self.module).__name__})"


def open_weights(
    source: str | Path | Module, revision: str | None = None, trust_remote_code: bool = False
) -> Weights:
    """Open the output weights of a decoder; source and errors are those of `open_model`."""
    if isinstance(source, Module):
        opened = _of_module(source)
    else:
        opened = _of_checkpoint(source, revision, trust_remote_code)
    paths = find_paths(opened.module)
    _check_mlps(opened, paths)
    unembedding, gain, centres = _read_output(opened, paths)
    reader, writer = map(opened.module.get_submodule, (paths.readers[0][0], paths.writers[0]))
    read = oriented(reader, reader.weight).shape[0]
    neurons = oriented(writer, writer.weight).shape[1]

    # Read one layer at a time: the output weights of all layers together may not fit into memory.
    def down(layer: int) -> Tensor:
        path = paths.writers[layer]
        weight = opened.tensors[f"{path}.weight"]
        return oriented(opened.module.get_submodule(path), weight).T.float().cpu()

    return Weights(
        unembedding=unembedding,
        gain=gain,
        centres=centres,
        down=down,
        layers=len(paths.blocks),
        neurons=neurons,
        # Some families keep both readings of a gated neuron in one matrix of twice the height.
        gated=len(paths.readers[0]) > 1 or read == 2 * neurons,
        tokens=opened.tokens,
        identity=opened.identity
        | {
            "config_sha256": hashes.hash_config(opened.module.config),
            "architecture": type(opened.module).__name__,
        },
    )


def _of_module(module: Module) -> _Source:
    identity = {"model": type(module).__name__, "weights_sha256": hashes.hash_module(module)}
    return _Source(module, module.state_dict(), None, identity)


def _of_checkpoint(source: str | Path, revision: str | None, trust: bool) -> _Source:
    """Read headers and tokenizer of a checkpoint; its tensors are read when they are needed."""
    name, path = checkpoint.resolve(source)
    config = checkpoint.read_config(name, path, revision, trust)
    module = checkpoint.sketch(name, config, trust)
    with reading(f"the checkpoint of {name}", REMEDY):
        tensors = Tensors(path, module, revision)
    tokenizer = checkpoint.load_tokenizer(name, path, revision=revision, trust_remote_code=trust)
    check_tokenizer(name, tokenizer, module.config.get_text_config().vocab_size)
    identity = {"model": name, "revision": checkpoint.commit(path, revision)}
    if Path(path).is_dir():
        identity["weights_sha256"] = hashes.hash_directory(Path(path))
    return _Source(module, tensors, len(tokenizer), identity)


def _check_mlps(opened: _Source, paths: Paths) -> None:
    """Refuse a model whose MLPs do not write to the residual stream through one matrix each."""
    if len(paths.writers) != len(paths.blocks):
        raise Refusal(
            f"{opened.title}: an MLP made of matrices was found in {len(paths.writers)} blocks"
        )
    if any(after for _, (_, _, after, _) in paths.sublayers):
        raise Refusal(
            f"{opened.title} puts a norm between MLP and residual stream: what its neurons write "
            "is not in their weights alone"
        )


def _read_output(opened: _Source, paths: Paths) -> tuple[Tensor, Tensor | None, bool]:
    """Return the unembedding, the gain of the final norm, and whether that norm centres.

    A matrix between the last block and the head is multiplied into the unembedding.
    """
    unembedding = opened.tensors[f"{_unembedding_path(opened.module, paths)}.weight"].float().cpu()
    gain, centres = None, False
    # From the head back to the last block: each matrix multiplies what lies nearer to the head.
    for place, path in reversed(list(enumerate(paths.norms))):
        part = _load_part(opened, path)
        if isinstance(part, Linear):
            unembedding = unembedding @ part.weight.detach()
        elif place or not acts_as_norm(part, unembedding.shape[1]):
            raise Refusal(
                f"{opened.title}: {path} ({type(part).__name__}) stands between the last block and "
                "the unembedding, and is neither a matrix nor the one norm of the residual stream: "
                "what neurons write to the vocabulary is not in their weights alone"
            )
        else:
            gain, _, centres = affine(part, unembedding.shape[1])
    return unembedding, gain, centres


def _unembedding_path(module: Any, paths: Paths) -> str:
    """Return the path of the head, or of the embeddings that share its matrix."""
    if not module.config.get_text_config().tie_word_embeddings:
        return paths.head
    # A checkpoint holds tied weights once, under the name of the embeddings.
    embeddings = module.get_input_embeddings()
    return next(path for path, part in module.named_modules() if part is embeddings)


def _load_part(opened: _Source, path: str) -> Module:
    """Return a copy of a submodule with its weights, on the CPU in float32."""
    part = copy.deepcopy(opened.module.get_submodule(path)).to_empty(device="cpu").float()
    part.load_state_dict({name: opened.tensors[f"{path}.{name}"] for name in part.state_dict()})
    return part
