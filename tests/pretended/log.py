"""The log of what costs a real device time: copies between devices, and reads by the host."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = str(Path(__file__).parents[2])
OURS = tuple(f"{ROOT}/{name}" for name in ("robustness/", "probes/", "recipes/", "cli.py"))

TO_DEVICE, TO_HOST, BETWEEN = "copy to the device", "copy to the host", "copy between devices"
READ = "read by the host"


@dataclass(frozen=True)
class Event:
    """A copy or a read."""

    kind: str
    """One of the four above. For each but the first, the host waits until the device is done."""
    operation: str
    """Operation of torch."""
    place: str
    """Line of the project that caused it, or else of a test or a library."""
    part: str
    """Part of the run, as `Log.during` names it."""


@dataclass
class Log:
    """All events since the last `clear`."""

    events: list[Event] = field(default_factory=list)
    part: str = ""

    def clear(self) -> None:
        """Forget all events."""
        self.events.clear()

    def add(self, kind: str, operation: object) -> None:
        """Note an event of the code that runs now."""
        self.events.append(Event(kind, str(operation), _place(), self.part))

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Give events the name of a part of the run."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def within(self, part: str) -> list[Event]:
        """Return the events of a part of the run."""
        return [event for event in self.events if event.part == part]

    def kinds(self) -> Counter[str]:
        """Return how many events there are of each kind."""
        return Counter(event.kind for event in self.events)

    def places(self) -> Counter[tuple[str, str]]:
        """Return how many events there are by kind and line."""
        return Counter((event.kind, event.place) for event in self.events)


LOG = Log()
"""The only one: operations of torch have no place to hand one along."""


def _place() -> str:
    """Return the innermost line of the project that is being executed."""
    frame, other = sys._getframe(2), ""
    while frame is not None:
        name = frame.f_code.co_filename
        where = f"{name}:{frame.f_lineno} {frame.f_code.co_name}"
        if name.startswith(OURS):
            return where.removeprefix(f"{ROOT}/")
        if not other and "/torch/" not in name and "/tests/pretended/" not in name:
            other = where.rpartition("site-packages/")[2]
        frame = frame.f_back
    return other
