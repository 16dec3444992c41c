"""A job on a server: what is known of it, when to ask for it again, and when it counts as lost."""

import time
import uuid

from nnsight.schema.response import Status

from robustness.ndif.messages import Message

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 2.0
"""Shortest and longest pause, in seconds, before a job is asked for again."""

SHARE = 0.05
"""Pause before a job is asked for again, as a share of the time since it was sent."""

UNKNOWN = 10.0
"""Seconds after which a job that the server does not know counts as lost.

A server knows a job as soon as its queue has taken it, which takes milliseconds, or a few seconds
where many jobs come at once."""

SILENCE = 1800.0
"""Seconds without news after which a job that waits for its turn counts as lost.

A queue tells a job its place only once, and many may wait in it. Each time that a request is sent
again it is given twice as long."""

LEAST_AFTER_RESTART = 60.0
"""Minimum of seconds without news after which a job counts as lost if the server was away."""


class Lost(Exception):
    """A job that came to nothing by no fault of its own: its request must be sent again.

    Parameters
    ----------
    text : str
        What has become of it.
    unknown : bool
        Whether the server does not know it, and may learn of it later.
    done : bool
        Whether it was done, and its result has gone.
    """

    def __init__(self, text: str, unknown: bool = False, done: bool = False) -> None:
        super().__init__(text)
        self.unknown, self.done = unknown, done


class Job:
    """A request that is sent to a server once.

    Parameters
    ----------
    patience : float
        Seconds without news after which it counts as lost if the server was away since the last.
    silence : float
        Seconds without news after which it counts as lost while it waits for its turn.
    """

    def __init__(self, patience: float, silence: float = SILENCE) -> None:
        self.id = uuid.uuid4().hex
        """Name of the job, until the server gives it another."""
        self.sent = False
        """Whether the server may have the request."""
        self.message: Message | None = None
        """The last message about it."""
        self._silence, self._patience = silence, max(patience, LEAST_AFTER_RESTART)
        self._begun = self._news = time.monotonic()
        self._unknown: float | None = None
        self._back: float | None = None

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._begun

    @property
    def quiet(self) -> float:
        """Seconds since the last news."""
        return time.monotonic() - self._news

    @property
    def pause(self) -> float:
        """Seconds to wait before it is asked for again."""
        return min(LONGEST_PAUSE, max(FIRST_PAUSE, SHARE * self.age))

    @property
    def runs(self) -> bool:
        """Whether it was running when it was last heard of."""
        return self.message is not None and self.message.state == Status.RUNNING

    def submit(self) -> None:
        """Take note that the request is on its way: from here on, the server may have it."""
        self.sent = True
        self._begun = self._news = time.monotonic()

    def hear(self, message: Message | None) -> None:
        """Take note of what the server says of it; None if the server does not know it.

        Raises
        ------
        Lost
            If that means, or the time since it last said something else, that the job is lost.
        """
        now = time.monotonic()
        if message is None:
            self._unknown = now if self._unknown is None else self._unknown
            if now - self._unknown > UNKNOWN:
                raise Lost("the server does not know the job", unknown=True)
            return
        self._unknown = None
        if message != self.message:
            self.message, self._news, self._back = message, now, None
        elif self._back is not None and now - self._back > self._patience:
            raise Lost("the server was away, and nothing is heard of the job since")
        elif not self.runs and self.quiet > self._silence:
            raise Lost("nothing is heard of the job")

    def miss(self, away: bool) -> None:
        """Take note that it could not be asked for, since the server was away or the way to it."""
        # What a server does not know while it starts, it may know later.
        self._unknown = None
        if away:
            self._back = time.monotonic()
