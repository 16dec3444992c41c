"""Matrix products without the shortcuts that a process may have chosen or inherited.

Containers turn TF32 on by environment variables, and programs by
`torch.set_float32_matmul_precision`. Products of float32 then have 10 bits on a GPU and 8 on some
CPUs, and a KL of 1e-3 is noise. Sums of half-precision products may be rounded in between.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

RECORD = "float32 products in float32, without TF32; half-precision sums in float32"
"""Text that says of numbers from a GPU that they were computed inside `exact_products`."""


@contextmanager
def exact_products() -> Iterator[None]:
    """Compute products of float32 in float32, and sum those of half precision in float32.

    The settings are of the whole process, and are put back at the end.
    """
    before = [(part, name, getattr(part, name)) for part, name, _ in _settings()]
    for part, name, value in _settings():
        setattr(part, name, value)
    try:
        yield
    finally:
        for part, name, value in before:
            setattr(part, name, value)


def _settings() -> tuple[tuple[Any, str, object], ...]:
    """Return settings as where they are, their name and their value."""
    backends: Any = torch.backends
    gpu, cpu = backends.cuda.matmul, backends.mkldnn.matmul
    return (
        (gpu, "fp32_precision", "ieee"),
        (cpu, "fp32_precision", "ieee"),
        (gpu, "allow_bf16_reduced_precision_reduction", False),
        (gpu, "allow_fp16_reduced_precision_reduction", False),
    )


def has_fast_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 numbers faster than float32."""
    # Older versions of torch do not tell.
    known: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("amx_bf16") or known.get("avx512_bf16"))
