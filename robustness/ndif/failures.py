"""Failures of a request: which are likely to pass, and what they say."""

import re
import socket
from itertools import pairwise

import httpx
import websocket

from robustness.errors import first_line

PASSING = {408, 425, 429, *range(500, 600)}
"""Statuses of answers that may be other the next time."""

AWAY = {502, 503, 504}
"""Statuses that a gateway answers with while there is no server behind it."""

TRANSIENT = re.compile("try again|sorry for the inconvenience|evicted", re.IGNORECASE)
"""What a server says of errors that are not the request's fault."""

NO_CONNECTION = (
    ConnectionRefusedError,
    socket.gaierror,
    websocket.WebSocketAddressException,
    httpx.ConnectError,
    httpx.ConnectTimeout,
)
"""Errors that are raised where nothing answers at an address."""


class Failed(Exception):
    """A request that is answered by an error."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status
        """Status of the answer, where not the trace but sending it failed."""


ON_THE_WAY = (OSError, httpx.HTTPError, websocket.WebSocketException, Failed)
"""Errors on the way to a server, and those that a server tells of."""


def is_away(error: Exception) -> bool:
    """Whether nothing answers at the server's address, as while it is restarted."""
    if isinstance(error, websocket.WebSocketBadStatusException):
        return error.status_code in AWAY
    if isinstance(error, Failed):
        return error.status in AWAY
    return isinstance(error, NO_CONNECTION)


def is_passing(error: Exception) -> bool:
    """Whether an error is likely gone when the request is sent again."""
    if isinstance(error, websocket.WebSocketBadStatusException):
        return error.status_code in PASSING
    # Anything else that breaks on the way says nothing of the request.
    if not isinstance(error, Failed):
        return True
    text = str(error)
    if error.status is not None:
        return error.status in PASSING
    # These would fail again, whatever else the text says.
    if text.startswith("Could not deploy") or "Traceback (most recent call last)" in text:
        return False
    return TRANSIENT.search(text) is not None


def reason(error: Exception, there: str) -> str:
    """Return in a line why a request failed.

    Parameters
    ----------
    error : Exception
        One of `ON_THE_WAY`.
    there : str
        The file that the trace is written in.
    """
    if isinstance(error, websocket.WebSocketBadStatusException):
        return f"the connection is refused with status {error.status_code}"
    return _gist(str(error), there) if isinstance(error, Failed) else first_line(error)


def explain(error: Exception, reason: str, host: str) -> str:
    """Return why a request failed for good, and what would do."""
    if isinstance(error, websocket.WebSocketBadStatusException):
        return f"{host}: {reason}; check `host` and proxies"
    if isinstance(error, Failed) and error.status in {401, 403}:
        return (
            f"{host} does not accept the key in NDIF_API_KEY ({reason}): "
            "get one at https://login.ndif.us"
        )
    if re.search("out of memory|OutOfMemory|execution timeout", str(error)):
        return f"{host}: {reason}; ask for fewer `batch_tokens`"
    return f"{host} could not do it: {reason}"


def _gist(text: str, there: str) -> str:
    """Return the one line of a server's answer that matters: a traceback's last, and where.

    Parameters
    ----------
    text : str
        What the server says.
    there : str
        The file that the trace is written in.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "no reason given"
    if not lines[0].startswith("Traceback"):
        return lines[0]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (raised or lines)[-1] + _place(lines, there)


def _place(lines: list[str], there: str) -> str:
    """Return where in the user's own code a traceback has been last, or nothing."""
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
