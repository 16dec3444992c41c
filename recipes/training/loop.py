"""Training loop: steps, losses and checkpoints."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from recipes.training.settings import TrainingOptions
from recipes.training.state import Course, Log, keep, restore
from recipes.training.text import Texts
from robustness.errors import Refusal, first_line, is_out_of_memory


class Settings(Protocol):
    """What the loop reads of the settings of a training."""

    @property
    def steps(self) -> int:
        """Number of steps of the optimiser."""

    @property
    def batch(self) -> int:
        """Number of sequences in a step."""

    @property
    def context(self) -> int:
        """Number of tokens in a sequence."""

    @property
    def seed(self) -> int:
        """Seed of the batches."""

    @property
    def clip(self) -> float:
        """Maximum norm of the gradient."""

    @property
    def learning_rate(self) -> float:
        """Highest learning rate."""

    def rate(self, step: int) -> float:
        """Return the learning rate at a step, counted from 0."""


@dataclass(frozen=True)
class Trainee:
    """What is trained, and how its losses are computed."""

    model: Any
    """Module whose parameters with a gradient are trained."""
    optimizer: torch.optim.AdamW
    """Optimiser of these parameters."""
    learn: Callable[[Tensor], Tensor]
    """Function of the tokens of a batch that adds the gradient of their loss, and returns it."""
    evaluate: Callable[[], dict[str, list[float]]]
    """Function that returns numbers on held-out text, of each source, by their names in the log."""
    smaller: str
    """Advice if memory runs out."""
    evaluates: tuple[str, ...] = ("held_out_loss",)
    """Names of these numbers."""
    begins_evaluated: bool = False
    """Whether the model is evaluated before the first step too."""


def train(
    course: Course, trainee: Trainee, data: Texts, settings: Settings, options: TrainingOptions
) -> Log:
    """Train a model, from the last checkpoint if there is one.

    Parameters
    ----------
    course : Course
        Where checkpoints are kept, and what they must have been made with.
    trainee : Trainee
        The model, which is changed, and its losses.
    data : Texts
        Tokens of the training and held-out texts.
    settings : Settings
        Settings of the training.
    options : TrainingOptions
        Interval of checkpoints, and callbacks.

    Returns
    -------
    Log
        All losses.

    Raises
    ------
    Refusal
        If the loss diverges, or this machine cannot compute it.
    """
    log: Log = {"loss": [], "evaluated": []}
    for name in trainee.evaluates:
        log[name] = []
    start = restore(course, trainee.model, trainee.optimizer, log, settings.steps)
    if trainee.begins_evaluated and not start:
        _evaluate(trainee, log, 0, settings)
    for step in range(start, settings.steps):
        began = time.perf_counter()
        for group in trainee.optimizer.param_groups:
            group["lr"] = settings.rate(step)
        with refusing_failures(trainee.smaller):
            tokens = data.batch(
                step, seed=settings.seed, size=settings.batch, context=settings.context
            )
            loss = _step(trainee, tokens, settings)
        # Before the log and the next checkpoint, which would be worth nothing.
        _check_loss(loss, log, step + 1, settings)
        log["loss"].append(loss)
        speed = settings.batch * settings.context / (time.perf_counter() - began)
        if (step + 1) % options.checkpoint_every == 0 or step + 1 == settings.steps:
            _evaluate(trainee, log, step + 1, settings)
            keep(course, trainee.model, trainee.optimizer, log)
        if options.progress is not None:
            options.progress(step + 1, settings.steps, loss, speed)
    return log


def _evaluate(trainee: Trainee, log: Log, step: int, settings: Settings) -> None:
    """Add the numbers on held-out text after a step to the log."""
    with refusing_failures(trainee.smaller):
        found = trainee.evaluate()
    for name, numbers in found.items():
        _check_loss(sum(numbers), log, step, settings)
        log[name].append(numbers)
    log["evaluated"].append(step)


def _step(trainee: Trainee, tokens: Tensor, settings: Settings) -> float:
    """Take a step and return its loss, or NaN without a step if the gradient is not finite."""
    loss = trainee.learn(tokens)
    norm = torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), settings.clip)
    if not math.isfinite(norm.item()):
        return math.nan
    trainee.optimizer.step()
    trainee.optimizer.zero_grad()
    return loss.item()


def _check_loss(loss: float, log: Log, step: int, settings: Settings) -> None:
    """Refuse to continue with a loss that is no finite number."""
    if not math.isfinite(loss):
        evaluated = log["evaluated"]
        kept = f"; the checkpoint of step {int(evaluated[-1])} stays" if any(evaluated) else ""
        raise Refusal(
            f"the loss is no number at step {step} of {settings.steps}{kept}: {milder(settings)}"
        )


def milder(settings: Settings) -> str:
    """Return advice for losses and weights that are not finite."""
    return f"lower `learning_rate` from {settings.learning_rate}, and choose another directory"


@contextmanager
def refusing_failures(smaller: str) -> Iterator[None]:
    """Turn errors of libraries about what this machine cannot compute into refusals."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise Refusal(f"memory ran out: {smaller}") from error
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise Refusal(
                f"the model cannot be compiled ({first_line(error)}): leave `compile` out"
            ) from error
        raise
