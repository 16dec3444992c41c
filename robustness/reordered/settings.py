"""Settings of generation: how many tokens are written, and how they are chosen."""

from dataclasses import dataclass

from robustness.errors import Refusal

COLDEST = 1e-3
"""Lowest temperature that tokens are drawn at: logits divided by less overflow."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen."""

    tokens: int = 40
    """Maximum number of tokens to generate; fewer where the model ends the text."""
    temperature: float = 0.0
    """Temperature at which tokens are drawn; 0 takes the most likely token each time."""
    seed: int = 0
    """Seed of the draws, the same for every schedule."""

    def __post_init__(self) -> None:
        """Refuse numbers by which nothing can be generated."""
        if self.tokens < 1 or not 0 <= self.temperature < float("inf"):
            raise Refusal("one token or more is generated, at a `temperature` of 0 or more")
        if 0 < self.temperature < COLDEST:
            raise Refusal(
                f"a `temperature` of {self.temperature:g} is too low to draw at: it takes "
                f"{COLDEST:g} or more, or 0 for the most likely token each time"
            )
