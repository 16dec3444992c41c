"""What a server reports of a request that it has run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """Cost of a request, as the server measured it; None where it does not say."""

    seconds: float | None
    """Duration on the server, without the wait in its queue."""
    peak_bytes: int | None
    """Bytes that the request took on the GPU where it took most, besides the weights."""
    free_bytes: int | None
    """Bytes that the server had for it on that GPU."""
