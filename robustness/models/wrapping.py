"""Modules of transformers wrapped for nnsight, each left where it is."""

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
    tokenizer: Any
    identity: dict[str, str]
    """Name and origin of the model, as files keep them."""
    request: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of every trace; empty where traces run on this machine."""


class _Offloaded(TransformersModel):  # type: ignore[misc]
    """Leaves inputs where they are: accelerate moves them to where weights are loaded.

    nnsight would move them to the first weights, which are nowhere.
    """

    device = None


def wrap(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> TransformersModel:
    """Make an nnsight model of a module, which stays where it is."""
    # A pipeline would take the first entry of a map for a device, and `disk` is none.
    placed = vars(module).pop("hf_device_map", None)
    # Where weights are in place it is nnsight's own class, which a server knows.
    kind = _Offloaded if next(module.parameters()).is_meta else TransformersModel
    traced = kind(module, task="text-generation", tokenizer=tokenizer or _no_tokenizer(), device=-1)
    if placed is not None:
        module.hf_device_map = placed
    return traced


def _no_tokenizer() -> PreTrainedTokenizerFast:
    """Stand in for the tokenizer that nnsight wants even where only token ids are used."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"": 0}, unk_token="")))


def unscale(module: PreTrainedModel) -> None:
    """Turn off RWKV's halving of the residual stream, so that every block computes the same.

    RWKV halves the residual stream after every few blocks, and what later ones write to it, so that
    half precision does not overflow. In training it does not: the function is the same, but for
    what norms add to the variance, and a block is the same in every place.
    """
    if not getattr(module.config, "rescale_every", 0):
        return
    for part in module.modules():
        if getattr(part, "layers_are_rescaled", False):
            part.train()  # in training it does not halve, and takes back what it did
            part._rescale_layers()
            part.eval()
    module.config.rescale_every = 0
