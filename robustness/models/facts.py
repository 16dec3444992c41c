"""Facts about a model that running it shows, each found once."""

from threading import RLock
from typing import Any


class Facts:
    """Facts about a model, and the lock under which the model is run.

    Copies of a model that differ in how they are traced share this object, since they share the
    weights and the modules that a trace changes while it runs.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self.known: dict[Any, Any] = {}
        """Facts by the function that finds them."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Return an empty dictionary to pickle: a trace takes its model along, and no lock."""
        return dict, ()
