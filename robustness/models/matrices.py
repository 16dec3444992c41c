"""Matrices of a model: which modules are matrices, and how their weights are oriented."""

from nnsight.intervention.envoy import Envoy
from torch import Tensor
from torch.nn import Linear, Module
from transformers.pytorch_utils import Conv1D

from robustness.errors import Refusal


def is_matrix(part: Module) -> bool:
    """Whether a module is a matrix product, with or without a bias."""
    return isinstance(part, (Linear, Conv1D))


def oriented(part: Module, weight: Tensor) -> Tensor:
    """Return the weight of a matrix as (out, in); GPT-2 stores its transpose."""
    return weight.T if isinstance(part, Conv1D) else weight


def names_in(part: Module) -> list[str]:
    """Return the names of the matrices that a module holds directly."""
    return [name for name, child in part.named_children() if is_matrix(child)]


def names_in_sublayer(part: Module) -> list[str]:
    """Return the names of a sublayer's matrices: those that read its input, and one that writes.

    Raises
    ------
    Refusal
        If it has fewer than two.
    """
    names = names_in(part)
    if len(names) < 2:
        raise Refusal(
            f"{type(part).__name__} is not made of matrices that read and one that writes"
        )
    return names


def count_numbers(envoy: Envoy) -> int:
    """Return the number of parameters in the matrices of an envoy."""
    return sum(weight.numel() for weight in envoy._module.parameters() if weight.ndim > 1)
