"""Checkpoints of a training: weights, optimiser and log, and the settings that they belong to."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

from robustness.errors import Refusal, reading
from robustness.files.atomic import write_whole
from robustness.files.directory import unwritable
from robustness.files.manifest import difference

CHECKPOINT = "checkpoint.safetensors"
"""File name of a checkpoint."""

MARK, VERSION = "stages", "1"
"""Name of the metadata entry that identifies a checkpoint of this project, and the version of its
layout; its value is the kind of training and the version."""

OPTIMISER = ("step", "exp_avg", "exp_avg_sq")
"""Names of the tensors that AdamW keeps for every parameter."""

Log = dict[str, list[Any]]
"""Lists by name: `loss` of every step, `evaluated` steps, and of each of these the numbers that are
measured on held-out text, as `held_out_loss`."""


@dataclass(frozen=True)
class Course:
    """A training whose checkpoints are kept: what it is of, and where."""

    path: Path
    """Path of the checkpoint."""
    kind: str
    """Kind of the training, as a manifest has it."""
    made_of: Mapping[str, str]
    """Settings and hashes that a checkpoint must have been made with."""


def _trained(model: Any) -> Iterator[tuple[str, Parameter]]:
    """Yield the parameters that are trained; all others stay as they were."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def keep(course: Course, model: Any, optimizer: torch.optim.AdamW, log: Log) -> None:
    """Write a checkpoint in the place of the last one."""
    tensors = {}
    for name, rows in log.items():
        # In float64, in which losses come back as they were.
        tensors[f"log.{name}"] = torch.tensor(rows, dtype=torch.float64)
    for name, parameter in _trained(model):
        tensors[f"weight.{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    metadata = {MARK: f"{course.kind} {VERSION}", **course.made_of}
    with unwritable(course.path.parent):
        write_whole(course.path, lambda file: save_file(tensors, file, metadata=metadata))


def read_made_of(path: Path, kind: str) -> dict[str, str]:
    """Return the settings and hashes that a checkpoint was made with; refuse other files."""
    remedy = f"remove {path.name} to start again if it is of stages, or choose another directory"
    if path.is_symlink() or not path.is_file():
        raise Refusal(f"{path} is not a file that stages wrote: choose another directory")
    with reading(str(path), remedy), safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
    if metadata.pop(MARK, None) != f"{kind} {VERSION}":
        raise Refusal(f"{path} is no checkpoint of this version of stages: {remedy}")
    return metadata


def restore(course: Course, model: Any, optimizer: torch.optim.AdamW, log: Log, steps: int) -> int:
    """Load a checkpoint if there is one, and return the number of steps that are done.

    Raises
    ------
    Refusal
        If it belongs to other settings or another text, or is damaged.
    """
    path = course.path
    if not os.path.lexists(path):
        return 0
    different = difference(read_made_of(path, course.kind), course.made_of)
    if different:
        raise Refusal(
            f"{path.parent} holds a checkpoint of other settings: it was made {different}; choose "
            f"another directory, or remove {path.name} to start again"
        )
    # Everything is checked before anything is loaded, so that no model is half restored.
    with reading(str(path), f"remove {path.name} to start again"):
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        stored = {name: tensors[f"log.{name}"] for name in log}
        done = len(stored["loss"])
        _check_log(stored, done, steps)
        state = {}
        for name, parameter in _trained(model):
            step, *moments = (tensors[f"{key}.{name}"] for key in OPTIMISER)
            kept = [tensor.to(parameter.device) for tensor in (step, *moments)]
            state[parameter] = dict(zip(OPTIMISER, kept, strict=True))
            _check_like(parameter, tensors[f"weight.{name}"], *moments)
            if float(step) != done:
                raise ValueError(f"the optimiser is not at step {done}")
    for name, parameter in _trained(model):
        parameter.data.copy_(tensors[f"weight.{name}"])
        optimizer.state[parameter] = state[parameter]
    for name, rows in log.items():
        rows[:] = stored[name].tolist()
    return done


def _check_log(log: Mapping[str, Tensor], done: int, steps: int) -> None:
    """Raise ValueError for a log that does not belong to this number of steps."""
    evaluated = log["evaluated"].tolist()
    held_out = [rows for name, rows in log.items() if name not in {"loss", "evaluated"}]
    if not 1 <= done <= steps or log["loss"].ndim != 1 or any(rows.ndim != 2 for rows in held_out):
        raise ValueError(f"its log is not of 1 to {steps} steps")
    if evaluated != sorted(set(evaluated)) or evaluated[-1:] != [done]:
        raise ValueError("its log has other evaluations than steps")
    lengths = {len(evaluated), *map(len, held_out)}
    if len(lengths) > 1 or not all(map(_is_finite, log.values())):
        raise ValueError("its log has losses that are no numbers")


def _check_like(parameter: Tensor, *tensors: Tensor) -> None:
    """Raise ValueError for tensors that do not fit a parameter."""
    for tensor in tensors:
        if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
            raise ValueError("its weights have another shape or another dtype")
        if not _is_finite(tensor):
            raise ValueError("its weights are not finite")


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
