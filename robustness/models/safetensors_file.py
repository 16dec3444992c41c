"""Files in the safetensors format: their headers and single tensors.

A file is read from the disk, or fetched from the hub in ranges of bytes: the output weights of a
model fit into memory even if the whole model does not fit on the disk.
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
"""Types of unquantised weights, by the names that files have for them."""

LONGEST_HEADER = 100_000_000
"""Maximum number of bytes of a header, as in the safetensors library."""

ERRORS = (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, HTTPError)
"""Errors that are raised for a file that is damaged, or cannot be fetched."""


@dataclass(frozen=True)
class Entry:
    """Entry of a tensor in a header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Position of its first byte, counted from the end of the header."""
    end: int
    """Position after its last byte."""


class TensorFile(Protocol):
    """A file that tensors are read from one by one."""

    header: dict[str, Entry]

    def read(self, key: str) -> Tensor:
        """Read a tensor by the name that the file has for it."""
        ...


class LocalFile:
    """A file on this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Opening it has the library check the whole: its length, and that no tensors overlap.
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
        """Fetch the bytes of a tensor; of a type that is not in `DTYPES`, return an empty one."""
        entry = self.header[key]
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            return torch.empty(0, dtype=torch.uint8)
        if entry.begin < 0 or entry.end - entry.begin != prod(entry.shape) * dtype.itemsize:
            raise ValueError(f"a header that does not fit {key}")
        # A bytearray, since torch warns of tensors over memory that cannot be written.
        data = bytearray(self._bytes(self._start + entry.begin, self._start + entry.end))
        return torch.frombuffer(data, dtype=dtype).view(entry.shape)

    def _bytes(self, first: int, last: int) -> bytes:
        headers = {**build_hf_headers(), "Range": f"bytes={first}-{last - 1}"}
        answer = http_backoff("GET", self._url, headers=headers, follow_redirects=True)
        # With status 200 the answer would be the whole file.
        if answer.status_code != 206:
            raise ValueError(f"the hub answers a range with status {answer.status_code}")
        content: bytes = answer.content
        if len(content) != last - first:
            raise ValueError(
                f"the hub sent {len(content)} bytes where {last - first} were asked for"
            )
        return content


def read_header(text: bytes) -> dict[str, Entry]:
    """Read the entries of a header, by name of the tensor."""
    header = {}
    for key, entry in json.loads(text).items():
        if key != "__metadata__":
            begin, end = entry["data_offsets"]
            shape = tuple(map(int, entry["shape"]))
            header[key] = Entry(str(entry["dtype"]), shape, int(begin), int(end))
    return header
