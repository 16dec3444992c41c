"""Settings of a training: the model, its text and its optimiser."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from robustness.errors import Refusal
from robustness.runs.settings import Tell, silent
from robustness.text.settings import SHORTEST_SEQUENCE

ARCHITECTURES = ("gpt2", "gpt_neox")
"""Architectures: `gpt2` has sequential blocks and learned positions, `gpt_neox` parallel blocks and
rotary positions."""

LEAST = {
    "layers": 1,
    "width": 1,
    "heads": 1,
    "batch": 1,
    "warmup": 1,
    "tokens": 1,
    "context": SHORTEST_SEQUENCE,
    "vocabulary": 257,
    "seed": 0,
}
"""Minimum of every setting that is a whole number; a vocabulary has at least all bytes and EOS."""

Progress = Callable[[int, int, float, float], None]
"""Function of the step, the number of steps, the loss in nats per token, and tokens per second."""


@dataclass(frozen=True)
class Pretraining:
    """Settings of a model and its training; equal settings on one machine give equal losses.

    Raises
    ------
    Refusal
        If a setting is out of its range.
    """

    architecture: str = "gpt2"
    """One of `ARCHITECTURES`."""
    layers: int = 12
    """Number of blocks."""
    width: int = 128
    """Number of features of the residual stream."""
    heads: int = 4
    """Number of attention heads of a block."""
    context: int = 256
    """Number of tokens in a sequence, the leading BOS included."""
    vocabulary: int = 2048
    """Number of tokens of the tokenizer, if one is trained."""
    tokens: int = 12_000_000
    """Number of tokens of the training in all."""
    batch: int = 16
    """Number of sequences in a step."""
    learning_rate: float = 2e-3
    """Highest learning rate, reached after the warm-up; a cosine brings it to a tenth."""
    warmup: int = 150
    """Number of steps of the warm-up."""
    weight_decay: float = 0.1
    """Weight decay of matrices; other parameters have none."""
    clip: float = 1.0
    """Maximum norm of the gradient."""
    held_out: float = 0.03
    """Share of the documents of each source that is never trained on."""
    seed: int = 0
    """Seed of the weights, of the order of documents, and of the batches."""
    bfloat16: bool = True
    """Whether products are computed in bfloat16; weights and sums stay float32."""
    compile: bool = False
    """Whether torch compiles the model first, which takes a C++ compiler."""

    def __post_init__(self) -> None:
        """Refuse settings that are out of their range."""
        if self.architecture not in ARCHITECTURES:
            raise Refusal(
                f"no architecture {self.architecture!r}; there are: {', '.join(ARCHITECTURES)}"
            )
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise Refusal(f"`{name}` must be {least} or more, not {getattr(self, name)}")
        if self.width % self.heads:
            raise Refusal(f"a width of {self.width} does not divide among {self.heads} heads")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise Refusal(f"`{name}` must be above 0 and finite, not {value}")
        if not 0 <= self.weight_decay < math.inf:
            raise Refusal(f"`weight_decay` must be 0 or more, not {self.weight_decay}")
        if not 0 < self.held_out < 1:
            raise Refusal(f"`held_out` must be between 0 and 1, not {self.held_out}")
        if self.tokens < self.batch * self.context:
            raise Refusal(
                f"{self.tokens} tokens are fewer than one step of {self.batch} × {self.context}: "
                "raise `tokens`, or lower `batch` or `context`"
            )

    @property
    def steps(self) -> int:
        """Number of steps of the optimiser."""
        return self.tokens // (self.batch * self.context)

    def rate(self, step: int) -> float:
        """Return the learning rate at a step, counted from 0."""
        return cosine(step, self.steps, self.warmup, self.learning_rate)


def cosine(step: int, steps: int, warmup: int, highest: float) -> float:
    """Return the learning rate at a step of a cosine from its highest value to a tenth of that."""
    if step < warmup:
        return highest * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    # A cosine from 1 to 0.1.
    return highest * (0.55 + 0.45 * math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True)
class TrainingOptions:
    """Options of a training that do not change the model."""

    checkpoint_every: int = 400
    """Number of steps between checkpoints and between measurements of the held-out loss."""
    progress: Progress | None = None
    """Callback for progress, called after every step."""
    tell: Tell = silent
    """Callback for messages, such as that nothing is to be done."""
