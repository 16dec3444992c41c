"""Norms: what they multiply by, add and take out, measured by trying them out."""

import torch
from torch import Tensor
from torch.nn import Module


def is_called_norm(part: Module) -> bool:
    """Whether the class of a part is named as norms are."""
    return "norm" in type(part).__name__.lower()


def affine(norm: Module, width: int) -> tuple[Tensor, Tensor, bool]:
    """Return a norm's gain and shift, both (width,), and whether it centres.

    On a vector of ones and minus ones, of mean 0 and mean square 1, every norm gives its gain,
    times the vector, and its shift; on ones, one that centres gives its shift alone.
    """
    kind = _weights_of(norm)
    ones = torch.ones(1, width, dtype=kind.dtype, device=kind.device)
    signs = ones.clone()
    signs[:, ::2] = -1
    with torch.no_grad():
        shift = norm(torch.zeros_like(ones))
        # Large, so that what is added to the variance does not count.
        large = 1e6 if kind.dtype in {torch.float32, torch.float64} else 1e2
        gain = (norm(signs * large) - shift) * signs
        centres = bool((norm(ones) - shift).abs().max() < 1e-3 * gain.abs().max())
    return gain[0], shift[0], centres


def acts_as_norm(part: Module, width: int) -> bool:
    """Whether a part divides what it is given by its size, but for a gain and a shift."""
    kind = _weights_of(part)
    state = torch.sin(1.7 * torch.arange(width, device=kind.device, dtype=torch.float64)) + 1
    gain, shift, centres = affine(part, width)
    moved = state - state.mean() if centres else state
    expected = moved / moved.square().mean().sqrt() * gain + shift
    with torch.no_grad():
        given = part(state.to(kind.dtype)[None])[0]
    off = (given - expected).norm() / expected.norm()
    return bool(off <= 1e-3)


def _weights_of(part: Module) -> Tensor:
    """Return a tensor of a part, which says in which type and where it computes."""
    return next(iter(part.state_dict().values()), torch.zeros(0))
