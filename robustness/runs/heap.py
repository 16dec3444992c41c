"""The heap of the C library, which keeps freed memory while blocks run on a CPU.

Every block call takes and frees the same few large tensors. glibc gives such memory back to the
system at once, which then hands it out again page by page, each cleared: a tenth of the time of a
float32 block, and a third in half precision. No number depends on it.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

KEPT = {-3: 2**30, -1: 2**31 - 1}
"""Values of `mallopt` meanwhile: from which size on memory is taken from the system directly, and
how much may be free at the end of the heap before it is given back; both in bytes."""

USUAL = {-3: 2**25, -1: 2**26}
"""Values afterwards: those that glibc itself arrives at where tensors are large."""


@contextmanager
def kept_heap(device: torch.device) -> Iterator[None]:
    """Keep freed memory for the next tensors, if it is the CPU's; give it back in the end.

    Where the C library is not glibc, nothing changes.
    """
    library: Any = ctypes.CDLL(None) if device.type == "cpu" else None
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    _set(library, KEPT)
    try:
        yield
    finally:
        _set(library, USUAL)
        library.malloc_trim(0)


def _set(library: Any, values: dict[int, int]) -> None:
    for name, value in values.items():
        library.mallopt(name, value)
