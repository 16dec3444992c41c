"""Norms: their gain, their shift and whether they centre, measured by calling them."""

import torch
from torch import Tensor
from torch.nn import Module


def is_called_norm(part: Module) -> bool:
    """Whether the name of a part's class has `norm` in it."""
    return "norm" in type(part).__name__.lower()


def affine(norm: Module, width: int) -> tuple[Tensor, Tensor, bool]:
    """Return a norm's gain and shift, both (width,), and whether it centres.

    A vector of ones and minus ones has mean 0 and mean square 1: every norm returns its gain times
    this vector, plus its shift. For a vector of ones, a norm that centres returns its shift alone.
    """
    kind = _weights_of(norm)
    ones = torch.ones(1, width, dtype=kind.dtype, device=kind.device)
    signs = ones.clone()
    signs[:, ::2] = -1
    with torch.no_grad():
        shift = norm(torch.zeros_like(ones))
        # So large that the epsilon of the variance makes no difference.
        large = 1e6 if kind.dtype in {torch.float32, torch.float64} else 1e2
        gain = (norm(signs * large) - shift) * signs
        centres = bool((norm(ones) - shift).abs().max() < 1e-3 * gain.abs().max())
    return gain[0], shift[0], centres


def acts_as_norm(part: Module, width: int) -> bool:
    """Whether a part divides its input by its root mean square, up to a gain and a shift."""
    kind = _weights_of(part)
    # A vector of no special form, unlike those that `affine` has measured with.
    state = torch.sin(1.7 * torch.arange(width, device=kind.device, dtype=torch.float64)) + 1
    gain, shift, centres = affine(part, width)
    moved = state - state.mean() if centres else state
    expected = moved / moved.square().mean().sqrt() * gain + shift
    with torch.no_grad():
        given = part(state.to(kind.dtype)[None])[0]
    off = (given - expected).norm() / expected.norm()
    return bool(off <= 1e-3)


def _weights_of(part: Module) -> Tensor:
    """Return a tensor of a part, which has the type and the device that it computes in."""
    return next(iter(part.state_dict().values()), torch.zeros(0))
