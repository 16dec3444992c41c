"""What an interrupted training goes on from: weights, optimiser, log, and what they are of."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from robustness.errors import Refusal, reading
from robustness.files.atomic import write_whole
from robustness.files.directory import unwritable
from robustness.files.manifest import difference

CHECKPOINT = "checkpoint.safetensors"

MARK, KIND = "stages", "pretraining 1"
"""The entry by which a checkpoint is known as the project's, and what it says."""

OPTIMISER = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of every parameter."""

Log = dict[str, list[Any]]
"""By name: the loss of every step, the steps after which there was an evaluation, the losses."""


def keep(
    path: Path, model: Any, optimizer: torch.optim.AdamW, log: Log, made_of: Mapping[str, str]
) -> None:
    """Write a checkpoint in the place of the last."""
    tensors = {f"log.{name}": torch.tensor(rows, dtype=torch.float64) for name, rows in log.items()}
    for name, parameter in model.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    metadata = {MARK: KIND, **made_of}
    with unwritable(path.parent):
        write_whole(path, lambda file: save_file(tensors, file, metadata=metadata))


def read_made_of(path: Path) -> dict[str, str]:
    """Return what a checkpoint was made of, and refuse a file that is none."""
    remedy = f"remove {path.name} to start again if it is of stages, or choose another directory"
    if path.is_symlink() or not path.is_file():
        raise Refusal(f"{path} is not a file that stages wrote: choose another directory")
    with reading(str(path), remedy), safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
    if metadata.pop(MARK, None) != KIND:
        raise Refusal(f"{path} is no checkpoint of this version of stages: {remedy}")
    return metadata


def restore(
    path: Path,
    model: Any,
    optimizer: torch.optim.AdamW,
    log: Log,
    made_of: Mapping[str, str],
    steps: int,
) -> int:
    """Load a checkpoint where there is one; return the steps done.

    Raises
    ------
    Refusal
        If it is of other settings or another text, or does not hold what one of these holds.
    """
    if not os.path.lexists(path):
        return 0
    different = difference(read_made_of(path), made_of)
    if different:
        raise Refusal(
            f"{path.parent} holds a checkpoint of other settings: it was made {different}; choose "
            f"another directory, or remove {path.name} to start again"
        )
    with reading(str(path), f"remove {path.name} to start again"):
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        found = {name: tensors[f"log.{name}"] for name in log}
        done = len(found["loss"])
        _check_log(found, done, steps)
        state = {}
        for name, parameter in model.named_parameters():
            state[parameter] = {key: tensors[f"{key}.{name}"] for key in OPTIMISER}
            weight = tensors[f"weight.{name}"]
            _check_like(parameter, weight, *(state[parameter][key] for key in OPTIMISER[1:]))
            if float(state[parameter]["step"]) != done:
                raise ValueError(f"the optimiser is not at step {done}")
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors[f"weight.{name}"])
        optimizer.state[parameter] = state[parameter]
    for name, rows in log.items():
        rows[:] = found[name].tolist()
    return done


def _check_log(found: Mapping[str, Tensor], done: int, steps: int) -> None:
    """Raise ValueError for a log that is not of so many steps."""
    evaluated = found["evaluated"].tolist()
    if not 1 <= done <= steps or found["loss"].ndim != 1 or found["held_out_loss"].ndim != 2:
        raise ValueError(f"its log is not of 1 to {steps} steps")
    if evaluated != sorted(set(evaluated)) or evaluated[-1:] != [done]:
        raise ValueError("its log has other evaluations than steps")
    if len(evaluated) != len(found["held_out_loss"]) or not all(map(_is_finite, found.values())):
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
