"""Settings of a distillation: how a changed model is trained towards the one it was made of."""

import math
from dataclasses import dataclass

from recipes.training.settings import cosine
from robustness.errors import Refusal
from robustness.text.settings import SHORTEST_SEQUENCE

RATES = {"full": 5e-4, "lora": 2e-3}
"""Highest learning rate by default, of all weights and of adapters, which begin at 0."""

LEAST = {"steps": 1, "batch": 1, "warmup": 1, "context": SHORTEST_SEQUENCE, "seed": 0}
"""Minimum of every setting that is a whole number."""


@dataclass(frozen=True)
class Distillation:
    """Settings of a distillation; equal settings on one machine give equal losses.

    Raises
    ------
    Refusal
        If a setting is out of its range.
    """

    steps: int = 300
    """Number of steps of the optimiser."""
    batch: int = 8
    """Number of sequences in a step."""
    context: int = 256
    """Number of tokens in a sequence."""
    kl_weight: float = 0.9
    """Weight of the divergence from the teacher in the loss; the rest is the loss of next
    tokens."""
    temperature: float = 1.0
    """Temperature of both distributions in the divergence, which is multiplied by its square."""
    lora: int | None = None
    """Rank of the adapters that are trained; by default all weights are."""
    highest_rate: float | None = None
    """Highest learning rate, reached after the warm-up; a cosine brings it to a tenth. By default
    that of `RATES`."""
    warmup: int = 20
    """Number of steps of the warm-up."""
    weight_decay: float = 0.0
    """Weight decay of matrices: none, since it would pull the weights away from the teacher's."""
    clip: float = 1.0
    """Maximum norm of the gradient."""
    held_out: float = 0.1
    """Share of the documents of each source that is never trained on."""
    seed: int = 0
    """Seed of the adapters, of the order of documents, and of the batches."""

    def __post_init__(self) -> None:
        """Refuse settings that are out of their range."""
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise Refusal(f"`{name}` must be {least} or more, not {getattr(self, name)}")
        if self.lora is not None and self.lora < 1:
            raise Refusal(f"`lora` must be 1 or more, not {self.lora}")
        if not 0 <= self.kl_weight <= 1:
            raise Refusal(f"`kl_weight` must be between 0 and 1, not {self.kl_weight}")
        for name, value in (
            ("learning_rate", self.learning_rate),
            ("clip", self.clip),
            ("temperature", self.temperature),
        ):
            if not 0 < value < math.inf:
                raise Refusal(f"`{name}` must be above 0 and finite, not {value}")
        if not 0 < self.held_out < 1:
            raise Refusal(f"`held_out` must be between 0 and 1, not {self.held_out}")

    @property
    def learning_rate(self) -> float:
        """Highest learning rate."""
        usual = RATES["full" if self.lora is None else "lora"]
        return usual if self.highest_rate is None else self.highest_rate

    def rate(self, step: int) -> float:
        """Return the learning rate at a step, counted from 0."""
        return cosine(step, self.steps, self.warmup, self.learning_rate)
