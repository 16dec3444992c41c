"""Patience with a server: waits between attempts, until too much time is lost."""

import random
import time
from collections.abc import Callable

from robustness.errors import Unanswered

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""First and longest wait, in seconds, before something is tried again. The wait doubles each time,
and is shortened at random, by half at most."""

Notify = Callable[[str], object]
"""Function that is called with a message for a user who waits."""

_CHANCE = random.Random()


class Patience:
    """Waits before another attempt, for some minutes in all.

    Parameters
    ----------
    host : str
        Address of the server, for messages.
    minutes : float
        Minutes that may be lost before nothing is tried again.
    notify : callable
        Function that is called with what is waited for, when a wait begins.
    """

    def __init__(self, host: str, minutes: float, notify: Notify) -> None:
        self._host, self._minutes, self._notify = host, minutes, notify
        self.succeed()

    def succeed(self) -> None:
        """Take note that all is well: what fails from here on is another failure."""
        self._attempts, self._end = 0, 0.0

    def wait(self, reason: str, lived: float = 0.0) -> None:
        """Wait after a failed attempt.

        Parameters
        ----------
        reason : str
            Why it failed, in one line.
        lived : float
            Seconds of the attempt that do not count as lost: a job may wait long for its turn.

        Raises
        ------
        Unanswered
            If more time is lost than there is patience for.
        """
        now = time.monotonic()
        if not self._attempts:
            self._end = now + 60 * self._minutes
            if self._minutes:
                self._notify(f"{reason}; trying again for up to {self._minutes:g} min")
        else:
            self._end += lived
        self._attempts += 1
        if now >= self._end:
            times = "once" if self._attempts == 1 else f"{self._attempts} times"
            raise Unanswered(
                f"{self._host} was asked {times} in vain ({reason}); what is done is kept, and "
                "the same command goes on from there"
            )
        whole = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(self._attempts - 1, 30))
        # The last attempt is at the end, not before it.
        time.sleep(min(whole * _CHANCE.uniform(0.5, 1), self._end - now))
