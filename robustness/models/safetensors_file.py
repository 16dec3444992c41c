"""Files in the format safetensors: their headers, and single tensors out of them.

A file is read where it lies, or asked of the hub by ranges of bytes: of a model that fills several
disks, what writes to the vocabulary may still fit into one.
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    http_backoff,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of plain weights, by the names that files have for them."""

LONGEST_HEADER = 100_000_000
"""Maximum number of bytes of a header, as safetensors has it."""

ERRORS = (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, HTTPError)
"""Errors that are raised over a file that is damaged, or out of reach."""


@dataclass(frozen=True)
class Entry:
    """What a header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Its first byte after the header."""
    end: int


class TensorFile(Protocol):
    """A file whose tensors are read one by one."""

    header: dict[str, Entry]

    def read(self, key: str) -> Tensor:
        """Read a tensor by the name that the file has for it."""
        ...


class LocalFile:
    """A file on this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Checked as a whole by the library: its length, and that no two tensors overlap.
        with safe_open(path, framework="pt"), path.open("rb") as file:
            self.header = read_header(file.read(int.from_bytes(file.read(8), "little")))

    def read(self, key: str) -> Tensor:
        """Read a tensor by the name that the file has for it."""
        with safe_open(self._path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(key)
            return tensor


class HubFile:
    """A file on the hub: a length of eight bytes, a header of JSON, and the tensors one by one."""

    def __init__(self, url: str) -> None:
        self._url = url
        length = int.from_bytes(self._bytes(0, 8), "little")
        if not 0 < length <= LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        self.header = read_header(self._bytes(8, 8 + length))
        self._start = 8 + length

    def read(self, key: str) -> Tensor:
        """Ask for a tensor by its range of bytes; of another type than `DTYPES`, for nothing."""
        entry = self.header[key]
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            return torch.empty(0, dtype=torch.uint8)
        if entry.begin < 0 or entry.end - entry.begin != prod(entry.shape) * dtype.itemsize:
            raise ValueError(f"a header that does not fit {key}")
        data = bytearray(self._bytes(self._start + entry.begin, self._start + entry.end))
        return torch.frombuffer(data, dtype=dtype).view(entry.shape)

    def _bytes(self, first: int, last: int) -> bytes:
        headers = {**build_hf_headers(), "Range": f"bytes={first}-{last - 1}"}
        answer = http_backoff("GET", self._url, headers=headers, follow_redirects=True)
        if answer.status_code != 206:
            raise ValueError(f"the hub answers a range with status {answer.status_code}")
        content: bytes = answer.content
        if len(content) != last - first:
            raise ValueError(
                f"the hub sent {len(content)} bytes where {last - first} were asked for"
            )
        return content


def read_header(text: bytes) -> dict[str, Entry]:
    """Read a header: a name, a type, a shape and two places for every tensor."""
    header = {}
    for key, entry in json.loads(text).items():
        if key != "__metadata__":
            begin, end = entry["data_offsets"]
            shape = tuple(map(int, entry["shape"]))
            header[key] = Entry(str(entry["dtype"]), shape, int(begin), int(end))
    return header
