"""Adapters of low rank (LoRA), which are trained in the place of all weights."""

import warnings
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from robustness.errors import Refusal
from robustness.models.model import Model

SCALE = 2
"""Factor of what adapters add, the quotient of LoRA's alpha and its rank."""


def check_installed() -> None:
    """Refuse to train adapters without the library for them."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise Refusal(
            'adapters come from peft, which is not installed: pip install -e ".[heal]", or leave '
            "out `lora` to train all weights"
        ) from error


def count(model: Model, rank: int) -> int:
    """Return the number of weights of the adapters of a rank.

    Raises
    ------
    Refusal
        If a matrix has fewer rows or columns than the rank, beyond which nothing is gained, or no
        block has linear layers.
    """
    # Linear and Conv1D have their rows and columns in opposite orders.
    shapes = [part.weight.shape for part in _adapted(model).values()]
    largest = min(map(min, shapes))
    if rank > largest:
        raise Refusal(
            f"adapters of {model.name} have a rank of {largest} at most, as its smallest matrix "
            f"has, not `lora` {rank}"
        )
    return rank * sum(map(sum, shapes))


def with_adapters(model: Model, rank: int) -> Any:
    """Put adapters on the linear layers of all blocks, and train these alone.

    Parameters
    ----------
    model : Model
        The model, whose module is changed.
    rank : int
        Rank of the adapters.

    Returns
    -------
    PeftModel
        Wrapper of the module; its `merge_and_unload` gives the module back, adapters added to its
        weights. Adapters add nothing until they are trained.

    Raises
    ------
    Refusal
        If no block has linear layers.
    """
    import peft

    module = model.traced._module
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=SCALE * rank,
        lora_dropout=0.0,
        target_modules=list(_adapted(model)),
    )
    with warnings.catch_warnings():
        # It sets for each layer which way round its matrix is, and says so.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        return peft.get_peft_model(module, config)


def _adapted(model: Model) -> dict[str, nn.Linear | Conv1D]:
    """Return the linear layers of all blocks by their names."""
    blocks = model.traced._module.get_submodule(model.paths.block_list)
    found = {}
    # By their types, since every architecture has other names for attention and MLP.
    for name, part in blocks.named_modules():
        if isinstance(part, nn.Linear | Conv1D):
            found[f"{model.paths.block_list}.{name}"] = part
    if not found:
        raise Refusal(
            f"the blocks of {model.name} have no linear layers for adapters: leave out `lora`"
        )
    return found
