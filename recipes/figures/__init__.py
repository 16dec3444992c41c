"""The paper's figures, drawn from files alone."""

from recipes.figures.registry import DIAGRAMS, FIGURES, draw

__all__ = ["DIAGRAMS", "FIGURES", "draw"]
