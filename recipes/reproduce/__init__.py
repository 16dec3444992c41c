"""Reproduction of the paper on one model: measuring, stages, verdicts, figures and report."""

from recipes.reproduce.reproduction import reproduce
from recipes.reproduce.settings import ReproduceSettings

__all__ = ["ReproduceSettings", "reproduce"]
