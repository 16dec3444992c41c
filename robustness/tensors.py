"""Single tensors of a checkpoint, without the rest of it.

From a directory, or from a file that the hub's client has fetched before, a tensor is read where it
lies. Otherwise it is asked of the hub by its range of bytes: of a model that fills several disks,
what writes to the vocabulary may still fit into one.
"""

import json
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    http_backoff,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.utils import cached_file

from robustness.checkpoint import commit
from robustness.refusal import Refusal, first_line

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""By the names that files have for them; others hold no plain weights."""

WHOLE = "model.safetensors"
"""The file of a checkpoint that is not divided."""


class Tensors:
    """The tensors of a checkpoint by the names that the model has for them.

    Each is read when it is asked for, and nothing else.

    Parameters
    ----------
    path : str
        A directory, or a hub id.
    module : Module
        The model, on the meta device; families rename what older checkpoints hold.
    revision : str, optional
        Branch, tag or commit on the hub.

    Raises
    ------
    Refusal
        If the checkpoint has no safetensors that can be read.
    """

    def __init__(self, path: str, module: Any, revision: str | None = None) -> None:
        # One commit for all that is read: a branch may move in between.
        self._path, self._revision = path, commit(path, revision) or revision
        self._shards: dict[str, _Local | _Distant] = {}
        files = self._index()
        renamings = [
            each
            for each in get_model_conversion_mapping(module)
            if isinstance(each, WeightRenaming)
        ]
        wanted, prefix = module.state_dict(), module.base_model_prefix
        names = {key: rename_source_key(key, renamings, [], prefix, wanted)[0] for key in files}
        self._places = {name: (key, files[key]) for key, name in names.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> Tensor:
        called = Path(self._path).name
        if name not in self._places:
            raise Refusal(f"the checkpoint {called} has no tensor {name}")
        key, file = self._places[name]
        try:
            tensor = self._shard(file).read(key)
        except (SafetensorError, OSError, ValueError, LookupError, HTTPError) as error:
            raise Refusal(f"{called}: {name} cannot be read: {first_line(error)}") from error
        if not tensor.is_floating_point():
            raise Refusal(f"{called} is quantised: {name} holds {tensor.dtype}")
        return tensor

    def _index(self) -> dict[str, str]:
        """Return in which file of a checkpoint each of its tensors is."""
        called = Path(self._path).name
        name = f"{WHOLE}.index.json"
        try:
            index = cached_file(
                self._path,
                name,
                revision=self._revision,
                _raise_exceptions_for_missing_entries=False,
            )
            if index is not None:
                found: dict[str, str] = json.loads(Path(index).read_text())["weight_map"]
                return found
            return dict.fromkeys(self._shard(WHOLE).keys(), WHOLE)
        except (SafetensorError, OSError, ValueError, LookupError, HTTPError) as error:
            raise Refusal(f"{called} has no {WHOLE} to read: {first_line(error)}") from error

    def _shard(self, file: str) -> "_Local | _Distant":
        if file not in self._shards:
            if Path(self._path).is_dir():
                where: Any = Path(self._path) / file
            else:
                where = try_to_load_from_cache(self._path, file, revision=self._revision)
            here = isinstance(where, (str, Path))
            self._shards[file] = (
                _Local(where)
                if here
                else _Distant(hf_hub_url(self._path, file, revision=self._revision))
            )
        return self._shards[file]


class _Local:
    """A file on this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keys(self) -> list[str]:
        with safe_open(self._path, framework="pt") as file:
            return list(file.keys())

    def read(self, key: str) -> Tensor:
        with safe_open(self._path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(key)
            return tensor


class _Distant:
    """A file on the hub: a length of eight bytes, a header of JSON, and the tensors one by one."""

    def __init__(self, url: str) -> None:
        self._url = url
        length = int.from_bytes(self._bytes(0, 8), "little")
        self._header = json.loads(self._bytes(8, 8 + length))
        self._start = 8 + length

    def keys(self) -> list[str]:
        return [key for key in self._header if key != "__metadata__"]

    def read(self, key: str) -> Tensor:
        entry = self._header[key]
        dtype, shape = DTYPES.get(entry["dtype"], torch.uint8), entry["shape"]
        first, last = entry["data_offsets"]
        if dtype == torch.uint8:
            return torch.empty(0, dtype=dtype)
        if last - first != prod(shape) * dtype.itemsize:
            raise ValueError(f"a header that does not fit {key}")
        data = bytearray(self._bytes(self._start + first, self._start + last))
        return torch.frombuffer(data, dtype=dtype).view(shape)

    def _bytes(self, first: int, last: int) -> bytes:
        headers = {**build_hf_headers(), "Range": f"bytes={first}-{last - 1}"}
        answer = http_backoff("GET", self._url, headers=headers, follow_redirects=True)
        if answer.status_code != 206:
            raise ValueError(f"the hub answers a range with status {answer.status_code}")
        found: bytes = answer.content
        if len(found) != last - first:
            raise ValueError(f"the hub sent {len(found)} bytes where {last - first} were asked for")
        return found
