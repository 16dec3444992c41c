"""Failures of a request: which are worth another try, and their reasons."""

import re
from itertools import pairwise
from typing import Literal

import httpx

from robustness.errors import OUT_OF_MEMORY, Refusal, TooLarge, first_line

PASSING = {408, 425, 429, *range(500, 600)}
"""HTTP statuses of failures that may pass."""

AWAY = {502, 503, 504}
"""HTTP statuses that a gateway answers with while there is no server behind it."""

NOT_TAKEN = {408, 425, 429, 503}
"""HTTP statuses of a passing failure after which a request has surely not been taken."""

TRANSIENT = re.compile("try again|sorry for the inconvenience|evicted", re.IGNORECASE)
"""Words of a server about errors that are not the request's fault."""

TIMED_OUT = re.compile(r"Your job exceeded the execution timeout")
"""Beginning of a server's message about a job that it has ended."""

RAISED = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b")
"""Beginning of the line of a traceback that names an error."""

LONGEST = 300
"""Maximum number of characters of a server's message that are passed on."""


class Failed(Exception):
    """A request that the server answers with an error.

    Parameters
    ----------
    text : str
        The server's message.
    status : int, optional
        HTTP status, if the server did not take the question; None if the job failed.
    lacks_memory : bool
        Whether the server says that an allocation on a GPU was refused.
    """

    def __init__(self, text: str, status: int | None = None, lacks_memory: bool = False) -> None:
        super().__init__(text)
        self.status, self.lacks_memory = status, lacks_memory


ON_THE_WAY = (OSError, httpx.HTTPError, Failed)
"""Errors of the connection, and those that a server reports."""


def is_away(error: Exception) -> bool:
    """Whether the server itself was away, as while it is restarted, and not the way to it."""
    if isinstance(error, Failed):
        return error.status in AWAY
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConnectionRefusedError):
        cause = cause.__cause__
    return cause is not None


def is_passing(error: Exception) -> bool:
    """Whether an error is likely gone when the same is asked again."""
    # Any error of the connection is no fault of the request.
    if not isinstance(error, Failed):
        return True
    text = str(error)
    if error.status is not None:
        return error.status in PASSING
    # These fail again, even if a traceback holds one of the words in TRANSIENT.
    if text.startswith("Could not deploy") or "Traceback (most recent call last)" in text:
        return False
    return TRANSIENT.search(text) is not None and lacking(error) is None


def was_taken(error: Exception) -> bool:
    """Whether a server may have taken a request, although its answer is an error or is lost."""
    if isinstance(error, Failed):
        return error.status not in NOT_TAKEN
    return not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)


def is_unreached(error: Exception) -> bool:
    """Whether an address seems to be wrong: nothing answers there, or something else does."""
    passes = (httpx.ReadError, httpx.WriteError, httpx.ReadTimeout, httpx.WriteTimeout)
    # The protocol is also violated by a server that ends in the middle of an answer.
    ends = isinstance(error, httpx.RemoteProtocolError) and re.search(
        "disconnected|closed connection", str(error)
    )
    return not (isinstance(error, passes) or ends)


def lacking(error: Failed) -> Literal["memory", "time"] | None:
    """Return what a request had too little of on the server, if that was its fault."""
    text = str(error)
    if error.status is not None or text.startswith("Could not deploy"):
        return None
    if TIMED_OUT.match(text):
        return "time"
    lines = [line.strip() for line in text.splitlines()]
    # The error that ended a trace may have been raised while another was handled.
    if "Traceback (most recent call last)" in text:
        lines = [line for line in lines if RAISED.match(line)]
    for line in lines:
        if OUT_OF_MEMORY.search(line) or re.match(r"[\w.]*MemoryError\b", line):
            return "memory"
    return "memory" if error.lacks_memory else None


def reason(error: Exception, there: str = "") -> str:
    """Return the reason why a request failed, in one line.

    Parameters
    ----------
    error : Exception
        One of `ON_THE_WAY`.
    there : str
        Path of the file that the trace is written in.
    """
    return _gist(str(error), there) if isinstance(error, Failed) else first_line(error)


def refusal(error: Failed, there: str, host: str) -> Refusal:
    """Return why a request failed for good, and what the user can do."""
    gist = reason(error, there)
    if error.status in {401, 403}:
        return Refusal(
            f"{host} does not accept the key in NDIF_API_KEY ({gist}): "
            "get one at https://login.ndif.us"
        )
    lacks = lacking(error)
    if lacks is not None:
        return TooLarge(f"{host}: {gist}; ask for fewer `batch_tokens`", lacks)
    return Refusal(f"{host} could not do it: {gist}")


def clean(text: str, key: str, most: int = LONGEST) -> str:
    """Remove the key, signatures of links and control characters from a message."""
    text = re.sub(r"\?\S+", "?…", text.replace(key, "…"))
    text = "".join(letter for letter in text if letter.isprintable())
    return text if len(text) <= most else f"{text[:most]}…"


def _gist(text: str, there: str) -> str:
    """Return the line of a server's answer that names the error, and its place in the user's code.

    Parameters
    ----------
    text : str
        Message of the server, often a traceback.
    there : str
        Path of the file that the trace is written in.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "no reason given"
    if not lines[0].startswith("Traceback"):
        return lines[0]
    # Notes and hints may follow the error in a traceback.
    raised = [line for line in lines if RAISED.match(line)]
    return (raised or lines)[-1] + _place(lines, there)


def _place(lines: list[str], there: str) -> str:
    """Return the last place of a traceback in the user's own code, or nothing."""
    last = ""
    for line, code in pairwise(lines):
        entry = re.match(r'File "(.+)", line (\d+), in ', line)
        if entry is None or code.startswith("File "):
            continue
        path, number = entry.groups()
        name = re.split(r"[/\\\\]", path)[-1]
        if path == there or not re.search(
            r"[/\\](site-packages|dist-packages|lib[/\\]python[\d.]+)[/\\]", path
        ):
            last = f" (line {number} of {name}: {code})"
    return last
