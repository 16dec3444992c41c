"""Least squares with a ridge, from sums over tokens in float64.

Outputs y are predicted from inputs x as x D + b. Of x and y only sums over tokens are kept, so that
one pass over a text suffices for any ridge. With a weight w of every token, D and b minimise

    Σ w |x D + b − y|² + λ · m · |D|²

where m is the mean over features of Σ w x² (about the mean of x, where an offset b is fitted), and
λ is the ridge. With a ridge of 0 it is the least-squares solution of
minimum norm, as from `numpy.linalg.lstsq`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridges of which the one is taken that predicts documents best to which nothing was fitted."""

SINGULAR = 1e-13
"""Eigenvalues of the inputs' products below this share of the largest count as 0."""


@dataclass
class Sums:
    """Weighted sums over tokens of inputs x and outputs y, each (token, width), and products."""

    weight: float
    """Sum of the tokens' weights."""
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: float
    """Sum of squares of the outputs."""

    @classmethod
    def empty(cls, width: int) -> "Sums":
        """Return the sums over no tokens."""
        line, square = torch.zeros(width).double(), torch.zeros(width, width).double()
        return cls(0.0, line, line.clone(), square, square.clone(), 0.0)

    def add(self, x: Tensor, y: Tensor, weights: Tensor) -> None:
        """Add tokens, of which x and y (token, width) and weights (token,) are float64."""
        # Products are computed where the tokens are.
        weighted = x * weights[:, None]
        self.weight += float(weights.sum())
        self.x += weighted.sum(0).cpu()
        self.y += (weights @ y).cpu()
        self.xx += (weighted.T @ x).cpu()
        self.xy += (weighted.T @ y).cpu()
        self.yy += float(weights @ y.square().sum(1))

    def __add__(self, other: "Sums") -> "Sums":
        """Return the sums over the tokens of both."""
        return Sums(
            self.weight + other.weight,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )

    def error(self, matrix: Tensor, offset: Tensor) -> float:
        """Return Σ w |x D + b − y|² over the tokens."""
        crossed = (matrix * self.xy).sum() + offset @ self.y
        predicted = (matrix * (self.xx @ matrix)).sum()
        shifted = 2 * (self.x @ matrix) @ offset + self.weight * offset @ offset
        return float(predicted + shifted - 2 * crossed) + self.yy


class Solver:
    """Solutions for any ridge, from one decomposition of the inputs' products."""

    def __init__(self, sums: Sums, *, offset: bool) -> None:
        # Without any tokens all sums are 0.
        weight = sums.weight or 1.0
        self._mean_x = sums.x / weight if offset else torch.zeros_like(sums.x)
        self._mean_y = sums.y / weight if offset else torch.zeros_like(sums.y)
        products = sums.xx - weight * torch.outer(self._mean_x, self._mean_x)
        self._values, self._vectors = torch.linalg.eigh(products)
        self._scale = float(products.diagonal().mean())
        crossed = sums.xy - weight * torch.outer(self._mean_x, self._mean_y)
        self._crossed = self._vectors.T @ crossed

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return D (width, width) and b (width,)."""
        kept = self._values > SINGULAR * self._values.max()
        shrunk = self._values.clamp(min=0) + ridge * self._scale
        inverse = torch.where(kept, 1 / shrunk, torch.zeros_like(shrunk))
        matrix = self._vectors @ (inverse[:, None] * self._crossed)
        return matrix, self._mean_y - self._mean_x @ matrix


def choose_ridge(
    fitted: Sums, held_out: Sums, ridges: Sequence[float], *, offset: bool
) -> tuple[float, Tensor, Tensor]:
    """Return the ridge that predicts held-out tokens best, and the solution for all tokens.

    Parameters
    ----------
    fitted, held_out : Sums
        Sums over the tokens that solutions are fitted to, and over those that choose among them.
    ridges : sequence of float
        Ridges to choose from, in ascending order; of equal ones the first is taken.
    offset : bool
        Whether an offset is fitted.
    """
    chosen = ridges[0]
    if len(ridges) > 1:
        solver = Solver(fitted, offset=offset)
        errors = [held_out.error(*solver.solve(ridge)) for ridge in ridges]
        chosen = ridges[errors.index(min(errors))]
    return chosen, *Solver(fitted + held_out, offset=offset).solve(chosen)
