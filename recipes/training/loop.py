"""Training loop: steps, losses and checkpoints."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipes.training.settings import Pretraining, TrainingOptions
from recipes.training.state import Log, keep, restore
from recipes.training.text import Texts
from recipes.training.untrained import build_model, build_optimizer
from robustness.errors import Refusal, first_line, is_out_of_memory


def train(
    checkpoint: Path,
    data: Texts,
    settings: Pretraining,
    tokenizer: Any,
    made_of: dict[str, str],
    options: TrainingOptions,
) -> tuple[Any, Log]:
    """Train a model, from the last checkpoint if there is one.

    Parameters
    ----------
    checkpoint : path
        Path of the checkpoint.
    data : Texts
        Tokens of the training and held-out texts.
    settings : Pretraining
        Settings of the model and its training.
    tokenizer
        The tokenizer of the texts.
    made_of : dict
        Settings and hashes that a checkpoint must have been made with.
    options : TrainingOptions
        Interval of checkpoints, and callbacks.

    Returns
    -------
    model, log
        The model in float16, and all losses.

    Raises
    ------
    Refusal
        If the loss diverges, or this machine cannot compute it.
    """
    model = build_model(settings, tokenizer)
    optimizer = build_optimizer(model, settings)
    log: Log = {"loss": [], "held_out_loss": [], "evaluated": []}
    start = restore(checkpoint, model, optimizer, log, made_of, settings.steps)
    # The model itself is kept: the names of a compiled one's parameters have a prefix.
    compiled = torch.compile(model) if settings.compile else model
    for step in range(start, settings.steps):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        with _refusing_failures(settings):
            tokens = data.batch(
                step, seed=settings.seed, size=settings.batch, context=settings.context
            )
            loss = _step(compiled, optimizer, tokens, settings)
        # Before the log and the next checkpoint, which would be worth nothing.
        _check_loss(loss, log, step + 1, settings)
        log["loss"].append(loss)
        speed = settings.batch * settings.context / (time.perf_counter() - began)
        if (step + 1) % options.checkpoint_every == 0 or step + 1 == settings.steps:
            _evaluate(model, data, log, step + 1, settings)
            keep(checkpoint, model, optimizer, log, made_of)
        if options.progress is not None:
            options.progress(step + 1, settings.steps, loss, speed)
    _halve(model, settings)
    return model, log


def _evaluate(model: Any, data: Texts, log: Log, step: int, settings: Pretraining) -> None:
    """Add the held-out losses after a step to the log."""
    held_out = held_out_loss(model, data, settings)
    _check_loss(sum(held_out), log, step, settings)
    log["held_out_loss"].append(held_out)
    log["evaluated"].append(step)


def _halve(model: Any, settings: Pretraining) -> None:
    """Convert a model to float16, the type of its file."""
    model.half()
    if not all(bool(weight.isfinite().all()) for weight in model.parameters()):
        raise Refusal(
            "the model has weights beyond the range of float16, in which it would be written: "
            f"{_milder(settings)}"
        )


def _step(model: Any, optimizer: torch.optim.AdamW, tokens: Tensor, settings: Pretraining) -> float:
    """Take a step and return its loss, or NaN without a step if the gradient is not finite."""
    loss = _loss(model, tokens, settings.bfloat16)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    if not math.isfinite(norm.item()):
        return math.nan
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def _check_loss(loss: float, log: Log, step: int, settings: Pretraining) -> None:
    """Refuse to continue with a loss that is no finite number."""
    if not math.isfinite(loss):
        evaluated = log["evaluated"]
        kept = f"; the checkpoint of step {int(evaluated[-1])} stays" if evaluated else ""
        raise Refusal(
            f"the loss is no number at step {step} of {settings.steps}{kept}: {_milder(settings)}"
        )


def _milder(settings: Pretraining) -> str:
    """Return advice for losses and weights that are not finite."""
    return f"lower `learning_rate` from {settings.learning_rate}, and choose another directory"


@contextmanager
def _refusing_failures(settings: Pretraining) -> Iterator[None]:
    """Turn errors of libraries about what this machine cannot compute into refusals."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise Refusal(
                "memory ran out: lower `batch`, `context`, `layers` or `width`"
            ) from error
        if settings.compile and type(error).__module__.startswith("torch._"):
            raise Refusal(
                f"the model cannot be compiled ({first_line(error)}): leave `compile` out"
            ) from error
        raise


def held_out_loss(model: Any, data: Texts, settings: Pretraining) -> list[float]:
    """Return the mean loss on the held-out windows of each source, in nats per token."""
    losses = []
    for source in range(len(data.names)):
        windows = data.windows(source, settings.context)
        with torch.no_grad():
            total: Any = 0
            for batch in windows.split(settings.batch):
                total = total + _loss(model, batch, bfloat16=False) * len(batch)
        losses.append(float(total / len(windows)))
    return losses


def _loss(model: Any, tokens: Tensor, bfloat16: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits = model(input_ids=tokens, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten()
    )
