"""Loss of a distillation: the divergence from a teacher and the loss of next tokens."""

from typing import Any

import torch
from torch import Tensor


class _Divergence(torch.autograd.Function):
    """Sum over tokens of the KL divergence of a teacher's distribution from a student's.

    Its gradient is the difference of the two distributions. Differentiated step by step, the
    logarithms would leave rounding errors where both are equal, and an optimiser that divides
    gradients by their size would take steps along them.
    """

    @staticmethod
    def forward(context: Any, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the sum of the divergences of logits (token, vocabulary), in nats."""
        expected = torch.log_softmax(teacher, -1)
        found = torch.log_softmax(student, -1)
        divergence = (expected.exp() * (expected - found)).sum()
        context.save_for_backward(found.exp_().sub_(expected.exp_()))
        return divergence

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the student's logits."""
        (difference,) = context.saved_tensors
        return difference * gradients[0], None


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the sum over tokens of KL(teacher ‖ student), times the square of the temperature.

    The square keeps the size of gradients the same at every temperature (Hinton, Vinyals and Dean
    2015, Distilling the knowledge in a neural network, section 2).

    Parameters
    ----------
    student, teacher : Tensor
        Logits of shape (token, vocabulary).
    temperature : float
        Number by which both are divided first.

    Returns
    -------
    Tensor
        Scalar, in nats.
    """
    pair = (student / temperature, teacher / temperature)
    kl: Tensor = _Divergence.apply(*pair)  # type: ignore[no-untyped-call]
    return kl * temperature**2


def losses(
    student: Tensor, teacher: Tensor, tokens: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return divergence and loss of next tokens, summed over the tokens that have a next one.

    Parameters
    ----------
    student, teacher : Tensor
        Logits of shape (sequence, token, vocabulary).
    tokens : Tensor
        Sequences, int64 of shape (sequence, token).
    temperature : float
        Temperature of the divergence.
    """
    found = student[:, :-1].flatten(0, 1).float()
    expected = teacher[:, :-1].flatten(0, 1).float()
    following = tokens[:, 1:].flatten()
    next_token = torch.nn.functional.cross_entropy(found, following, reduction="sum")
    return divergence(found, expected, temperature), next_token
