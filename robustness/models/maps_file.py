"""Files of fitted maps: safetensors with the tensors of every map, and where the maps come from."""

import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from robustness.errors import Refusal, reading
from robustness.models.maps import Fitted, Maps
from robustness.models.safetensors_file import LocalFile
from robustness.schedules import Mapped, StreamMap, from_text

MARK, KIND = "stages", "maps 1"
"""Name and value of the metadata entry that identifies a file of maps."""

RIDGES = "ridges"
"""Name of the metadata entry with the ridges, as JSON."""

OFFSET = ".offset"
"""Suffix of the name of an offset, after that of its map."""

LAYERS = 10**6
"""Maximum number of blocks of a model whose maps are read."""

REMEDY = "fit the maps again"


def contents(maps: Maps) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file of maps."""
    tensors = {str(step): matrix.contiguous() for step, matrix in maps.matrices.items()}
    for step, offset in maps.offsets.items():
        tensors[f"{step}{OFFSET}"] = offset.contiguous()
    ridges = {str(step): ridge for step, ridge in maps.ridges.items()}
    return tensors, {MARK: KIND, RIDGES: json.dumps(ridges), **maps.attributes}


def read_maps(path: str | Path) -> Maps:
    """Read a file of fitted maps.

    Raises
    ------
    Refusal
        If there is no such file, it is none of maps, or it is damaged.
    """
    path = Path(path)
    with reading(str(path), REMEDY):
        try:
            regular = stat.S_ISREG(path.stat().st_mode)
        except OSError as error:
            reason = error.strerror
            raise Refusal(f"{path} cannot be read ({reason}): give a file of maps") from error
        if not regular:
            raise Refusal(f"{path} is no file: give a file of fitted maps")
        file = LocalFile(path)
        with safe_open(path, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
        if metadata.pop(MARK, None) != KIND:
            raise Refusal(f"{path} holds no fitted maps of this version of stages: {REMEDY}")
        if not all(text.isprintable() for text in metadata.values()):
            raise Refusal(f"{path} has a description that cannot be printed: {REMEDY}")
        tensors = {name: file.read(name) for name in file.header}
        return _assembled(path, tensors, metadata)


def _assembled(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> Maps:
    """Return the maps of a file, after a check of their names, shapes and numbers."""
    ridges = json.loads(metadata.pop(RIDGES, "{}"))
    matrices: dict[Fitted, Tensor] = {}
    offsets: dict[Fitted, Tensor] = {}
    kept: dict[Fitted, float] = {}
    for name, tensor in tensors.items():
        step = _step(path, name.removesuffix(OFFSET))
        offset = name.endswith(OFFSET)
        width = tensors[str(step)].shape[0]
        right = (width,) if offset else (width, width)
        if tensor.dtype != torch.float64 or tuple(tensor.shape) != right:
            raise Refusal(f"{path} holds no map in {step}, or none of float64: {REMEDY}")
        if not bool(tensor.isfinite().all()):
            raise Refusal(f"{path} holds numbers in {step} that are not finite: {REMEDY}")
        (offsets if offset else matrices)[step] = tensor
        if not offset:
            kept[step] = float(ridges.get(name, math.nan))
    return Maps(matrices, offsets, kept, metadata)


def _step(path: Path, name: str) -> Fitted:
    """Return the map of a name, which is the text of its step."""
    step = from_text(name, LAYERS)[0]
    if not isinstance(step, (StreamMap, Mapped)) or str(step) != name:
        raise Refusal(f"{path} holds tensors that are no fitted maps: {REMEDY}")
    return step
