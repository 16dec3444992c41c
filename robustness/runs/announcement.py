"""Announcement of a run: its user is told what it is about to do, and may end it."""

from robustness.runs import remote_traffic
from robustness.runs.foresight import Foresight, duration, size
from robustness.runs.settings import RunOptions


def announce(foresight: Foresight, options: RunOptions, lower: str) -> None:
    """Tell what a run is about to do, and refuse too much traffic through a sandbox's socket.

    Parameters
    ----------
    foresight : Foresight
        What it is about to do.
    options : RunOptions
        Its options. `foresee` is called first, and may end the run by an exception.
    lower : str
        Advice that would lower the traffic.

    Raises
    ------
    Refusal
        If more would cross the socket of a sandboxed server than `sandbox_limit`.
    """
    if options.foresee is not None:
        options.foresee(foresight)
    model = foresight.model
    remote_traffic.allow(model, foresight.crossings, lower)
    if model.request and foresight.costs:
        count, longest = len(foresight.costs), max(cost.seconds for cost in foresight.costs)
        down = size(sum(cost.down_bytes for cost in foresight.costs))
        options.tell(
            f"{count:,} {'requests' if count > 1 else 'request'} of about "
            f"{duration(longest)} or less on the server; {down} come back"
        )
