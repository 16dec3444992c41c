"""An opened decoder: its parts, its sizes, and facts about it.

A model is traced through nnsight. Its parts are envoys, which are called and read in traces. A
trace that names a model sends its class to a server, with all that its methods refer to: what
cannot be sent is imported where it is used.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import nnsight
import torch
from nnsight import TransformersModel
from nnsight.intervention.envoy import Envoy
from transformers import PreTrainedConfig

from robustness.models.call_record import trial_text
from robustness.models.facts import Facts
from robustness.models.maps import Maps
from robustness.models.matrices import count_numbers
from robustness.models.norms import is_called_norm
from robustness.models.structure import Paths
from robustness.trace.types import HeadThere, Matrix, Squash

Parts = tuple[tuple[Envoy, ...], Envoy, tuple[Envoy, ...], int | None]
"""The envoys of a sublayer, as `structure.Sublayer` has their paths."""

Fact = TypeVar("Fact")

# A function that a trace calls is sent to a server as source only if its package is registered;
# otherwise the server would import the package, which it does not have.
for _package in ("robustness", "probes", "recipes"):
    nnsight.register(_package)


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """An opened decoder.

    Attributes
    ----------
    traced : TransformersModel
        The nnsight model.
    paths : Paths
        The names of the submodules that are listed below.
    blocks, attentions : tuple of Envoy
        Every block, and the attention of every block that has one.
    sublayers : tuple
        Attention and MLP of every block that has these two, as in `robustness.trace.sublayers`.
    readers : tuple of tuple of Envoy
        The matrices of every MLP that read its input.
    writers : tuple of Envoy
        The matrix of every MLP that reads its neurons; empty where MLPs are not made of matrices.
    norms : tuple of Envoy
        Modules between the last block and the head: mostly one norm, or none; some models of the
        OPT family have a projection.
    head : Envoy
        The module that makes logits of states, up to a scale and a soft cap.
    tokenizer
        The tokenizer, or None for a module that was given without one.
    identity : dict of str to str
        Name, revision, hash of the weights, architecture, dtype, device, attention.
    grows : dict of tuple to bool
        Whether each tensor in a block's context grows with the batch; see `block_calls.widen`.
    returns : int
        Number of values that a block returns in a tuple; 0 for the residual stream alone.
    request : dict
        Keyword arguments of every trace on a server; empty for a model on this machine.
    sandboxed : bool
        Whether traces run apart from the weights, so that every call crosses a socket.
    squash : tuple
        Scale and soft cap of the logits; see `robustness.trace.unembedding`.
    compiled : tuple of callable
        What schedules call in place of the blocks; empty where they call the blocks themselves.
        See `robustness.models.compiled_blocks`.
    maps : Maps, optional
        Fitted maps for schedules that name some; see `with_maps`.
    facts : Facts
        Results of `once`, and the lock. Copies share it.
    """

    traced: TransformersModel
    paths: Paths
    blocks: tuple[Envoy, ...]
    attentions: tuple[Envoy, ...]
    sublayers: tuple[tuple[Parts, Parts], ...]
    readers: tuple[tuple[Envoy, ...], ...]
    writers: tuple[Envoy, ...]
    norms: tuple[Envoy, ...]
    head: Envoy
    tokenizer: Any
    identity: dict[str, str]
    grows: dict[Any, bool] = field(default_factory=dict)
    returns: int = 0
    request: dict[str, Any] = field(default_factory=dict)
    sandboxed: bool = False
    squash: Squash = (1.0, None)
    compiled: tuple[Callable[..., Any], ...] = ()
    maps: Maps | None = None
    facts: Facts = field(default_factory=Facts)

    def __repr__(self) -> str:
        where = self.identity.get("server", self.identity.get("device", self.device.type))
        return (
            f"Model({self.title}: {self.layers} layers of width {self.width}, "
            f"{self.identity.get('dtype', 'numbers of unknown type')} on {where})"
        )

    @property
    def lock(self) -> Any:
        """The lock to hold while a trace of the model is open: one thread at a time runs it.

        A trace replaces the forward methods of the model's modules, which all copies share.
        """
        return self.facts.lock

    def computing(self) -> AbstractContextManager[None]:
        """Hold the lock, and compute without gradients and with exact products."""
        from robustness.models.computing import computing

        return computing(self.lock)

    def once(self, find: Callable[["Model"], Fact]) -> Fact:
        """Return the result of a function of the model, which is called the first time only."""
        with self.lock:
            if find not in self.facts.known:
                self.facts.known[find] = find(self)
            fact: Fact = self.facts.known[find]
            return fact

    def with_maps(self, maps: Maps) -> "Model":
        """Return the model with fitted maps, whose hash becomes part of its identity.

        Raises
        ------
        Refusal
            If the maps are of another width, or were fitted to other weights.
        """
        from robustness.models.maps import check_owner

        check_owner(maps, self.identity, self.width)
        return replace(self, maps=maps, identity=self.identity | {"maps_sha256": maps.sha256()})

    @property
    def name(self) -> str:
        """Hub id, base name of a directory, name of a built-in model, or class of a module."""
        return self.identity["model"]

    @property
    def title(self) -> str:
        """Name and architecture, for messages."""
        return f"{self.name} ({self.identity['architecture']})"

    @property
    def execution(self) -> dict[str, str]:
        """How schedules run, for files of what they measure: whether blocks are compiled."""
        return {"compiled": "blocks"} if self.compiled else {}

    @property
    def config(self) -> PreTrainedConfig:
        """The configuration of the language model."""
        return self.traced._module.config.get_text_config()

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """Number of features of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def heads(self) -> int:
        """Number of attention heads of a block, counted by their queries; 0 without attention."""
        return int(getattr(self.config, "num_attention_heads", 0))

    @property
    def head_width(self) -> int:
        """Number of features of an attention head."""
        return int(getattr(self.config, "head_dim", None) or self.width // max(1, self.heads))

    @property
    def block_parameters(self) -> tuple[int, ...]:
        """Number of parameters in the matrices of each block."""
        return tuple(map(count_numbers, self.blocks))

    @property
    def sublayer_parameters(self) -> tuple[tuple[int, ...], ...]:
        """Number of parameters in the matrices of attention and MLP of each block with both."""
        counts = []
        for pair in self.sublayers:
            attention, mlp = map(_count_sublayer, pair)
            counts.append((attention, mlp))
        return tuple(counts)

    @property
    def reads_matrix(self) -> bool:
        """Whether the head is a matrix that can be read, and need not be called."""
        from robustness.models import head_matrix

        return head_matrix.is_linear(self.head._module) and not self.request

    @property
    def centres_matrix(self) -> bool:
        """Whether the matrix that is read is a centred copy; see `head_matrix`."""
        from robustness.models import head_matrix

        return head_matrix.is_centred(self.head._module, self.squash)

    @property
    def vocabulary(self) -> int:
        """Number of logits of a token."""
        return int(self.config.vocab_size)

    @property
    def context(self) -> int | None:
        """Maximum number of tokens of a sequence, or None where the model sets no limit."""
        limit = getattr(self.config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def trial_text(self) -> list[int]:
        """Token ids of a short text, on which the model is tried out."""
        return trial_text(self.config)

    @property
    def numbers(self) -> list[float]:
        """Numbers of the configuration, 1 first: a measured factor is likely one of them."""
        numbers = [1.0]
        for value in self.config.to_dict().values():
            # Not `isinstance`, since True and False are integers, too.
            if type(value) in (int, float) and value:
                numbers.append(float(value))
        return numbers

    @property
    def precision(self) -> str:
        """Type of measured numbers: `float64` if the weights are, otherwise `float32`."""
        return "float64" if self.identity["dtype"] == "float64" else "float32"

    @property
    def device(self) -> torch.device:
        """Device on which tokens are made: the one of the weights, or the CPU for a server."""
        device: torch.device = self.traced._module.device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def offloaded(self) -> bool:
        """Whether some weights are loaded for each call of their module."""
        return any(weight.is_meta for weight in self.traced._module.parameters())

    @property
    def normed(self) -> bool:
        """Whether the last residual stream is normed before the head."""
        return any(is_called_norm(part._module) for part in self.norms)

    @property
    def bends(self) -> tuple[int, ...]:
        """Lengths of text above which rotary embeddings change their frequencies for all tokens.

        Embeddings of type `longrope` have such a length. The one of type `dynamic` is the end of
        the context, which no text exceeds.
        """
        settings = getattr(self.config, "rope_parameters", None) or {}
        # Some families have settings for every kind of layer, within the settings.
        lengths = set()
        for kind in (settings, *settings.values()):
            if isinstance(kind, dict) and kind.get("rope_type") == "longrope":
                lengths.add(int(kind["original_max_position_embeddings"]))
        return tuple(sorted(lengths))

    def asking(self, numbers: int) -> dict[str, Any]:
        """Return `request` for a trace that returns at most this number of numbers."""
        if not self.request:
            return {}
        return self.request | {"backend": self.request["backend"].expecting(numbers)}

    def unembedding(self, copied: bool = True) -> Matrix | None:
        """Return the head's matrix, or None where the head has to be called.

        It is the head's own, or a centred copy of it if a copy may be made; see `head_matrix`.
        """
        from robustness.models import head_matrix

        if not self.reads_matrix:
            return None
        centred = copied and self.centres_matrix
        return head_matrix.read(self.head._module, self.squash, centred, bool(self.compiled))

    def head_there(self, tokens: float) -> HeadThere | None:
        """Return what a trace on a server needs to take the head's matrix; see `head_matrix`."""
        from robustness.models import head_matrix

        if not self.request:
            return None
        return head_matrix.there(self.head._module, self.squash, self.identity["dtype"], tokens)


def find_parts(traced: TransformersModel, paths: Paths) -> dict[str, Any]:
    """Return the envoys of blocks, sublayers, matrices, norms and head, by field of `Model`."""
    return {name: _envoys(traced, value) for name, value in vars(paths).items()}


def _count_sublayer(parts: Parts) -> int:
    """Return the number of parameters in the matrices of a sublayer."""
    before, main, after, _ = parts
    return sum(map(count_numbers, (*before, main, *after)))


def _envoys(traced: TransformersModel, paths: Any) -> Any:
    """Return the envoys of nested paths; values that are no paths stay as they are."""
    if isinstance(paths, tuple):
        return tuple(_envoys(traced, path) for path in paths)
    if not isinstance(paths, str):
        return paths
    envoy: Any = traced
    for name in paths.split("."):
        envoy = envoy[int(name)] if name.isdigit() else getattr(envoy, name)
    return envoy
