"""Facts that are found out about a model by running it, each once."""

from threading import RLock
from typing import Any


class Facts:
    """What is known of a model, and the lock under which the model is run.

    Copies of a model that differ in how it is traced share one, since they share the weights and
    the modules that a trace changes while it runs.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self.known: dict[Any, Any] = {}
        """Facts by the function that finds them."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Stay here: a model that a trace names goes along with it, and a lock cannot."""
        return dict, ()
