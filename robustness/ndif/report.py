"""What a server reports of a request that it has run."""

from dataclasses import dataclass
from typing import Any

MOST = 1e18
"""Number above which a figure of a server is not believed."""

LEAST_SHARE = 0.1
"""Share of the memory, in percent, below which two decimals of it say little of the whole."""


@dataclass(frozen=True)
class Report:
    """Cost of a request, as the server measured it; None where it does not say."""

    seconds: float | None
    """Duration on the server, without the wait in its queue."""
    peak_bytes: int | None
    """Bytes that the request took on the GPU where it took most, besides the weights."""
    free_bytes: int | None
    """Bytes that the server had for it on that GPU."""


def read_report(meta: Any) -> Report:
    """Read what a server says of a request; what cannot be true is left out."""
    entries = meta if isinstance(meta, dict) else {}
    taken, shares = (
        _numbers(entries.get(name)) for name in ("max_mem_by_gpu", "max_mem_pct_by_gpu")
    )
    most = max(taken, key=lambda gpu: taken[gpu], default=None)
    if most is None:
        return Report(_number(entries.get("runtime")), None, None)
    share = shares.get(most, 0.0)
    # The share is rounded to two decimals.
    free = int(taken[most] / share * 100) if share >= LEAST_SHARE else None
    return Report(_number(entries.get("runtime")), int(taken[most]), free)


def lacks_memory(meta: Any) -> bool:
    """Whether a server says of a request that an allocation on a GPU was refused."""
    return isinstance(meta, dict) and bool(meta.get("alloc_shortfall_by_gpu"))


def _numbers(value: Any) -> dict[str, float]:
    """Return the numbers of a dictionary by their names; what is none is left out."""
    numbers = {}
    for name, each in value.items() if isinstance(value, dict) else ():
        number = _number(each)
        if number is not None:
            numbers[str(name)] = number
    return numbers


def _number(value: Any) -> float | None:
    """Return a finite number that is not negative, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # False for what is not finite, too.
    return float(value) if 0 <= value <= MOST else None
