"""Wraps modules of transformers for nnsight; their weights stay where they are."""

from dataclasses import dataclass, field
from typing import Any

from nnsight import TransformersModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Wrapped:
    """A model that nnsight can trace, before its parts are found."""

    traced: TransformersModel
    """The nnsight model."""
    tokenizer: Any
    """The tokenizer, or None for a module that was given without one."""
    identity: dict[str, str]
    """Name and origin of the model, as files keep them."""
    request: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of every trace; empty where traces run on this machine."""


class _Offloaded(TransformersModel):  # type: ignore[misc]
    """Leaves inputs where they are: accelerate moves them to where weights are loaded.

    nnsight would move them to the device of the first weights, which is `meta`.
    """

    device = None


def wrap(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> TransformersModel:
    """Make an nnsight model of a module, which stays where it is."""
    # A pipeline takes the first entry of a map for its device, which `disk` is not.
    placed = vars(module).pop("hf_device_map", None)
    # With weights in place it is nnsight's own class, which a server can import.
    kind = _Offloaded if next(module.parameters()).is_meta else TransformersModel
    traced = kind(module, task="text-generation", tokenizer=tokenizer or _no_tokenizer(), device=-1)
    if placed is not None:
        module.hf_device_map = placed
    return traced


def _no_tokenizer() -> PreTrainedTokenizerFast:
    """Return a stand-in for the tokenizer that nnsight needs even if only token ids are used."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"": 0}, unk_token="")))


def unscale(module: PreTrainedModel) -> None:
    """Turn off RWKV's halving of the residual stream, so that every block computes the same.

    To keep half precision from overflowing, RWKV halves the residual stream after every few blocks,
    and the output of all later blocks. It does not do so in training. The function is the same, up
    to the epsilon of its norms, and a block then computes the same in every place.
    """
    if not getattr(module.config, "rescale_every", 0):
        return
    for part in module.modules():
        if getattr(part, "layers_are_rescaled", False):
            part.train()  # in training it does not halve, and takes back what it did
            part._rescale_layers()
            part.eval()
    module.config.rescale_every = 0
