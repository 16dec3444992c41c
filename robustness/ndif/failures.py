"""Failures of a request: which are worth another try, and their reasons."""

import re
import socket
from itertools import pairwise

import httpx
import websocket

from robustness.errors import first_line

PASSING = {408, 425, 429, *range(500, 600)}
"""HTTP statuses of failures that may pass."""

AWAY = {502, 503, 504}
"""HTTP statuses that a gateway answers with while there is no server behind it."""

TRANSIENT = re.compile("try again|sorry for the inconvenience|evicted", re.IGNORECASE)
"""Words of a server about errors that are not the request's fault."""

NO_CONNECTION = (
    ConnectionRefusedError,
    socket.gaierror,
    websocket.WebSocketAddressException,
    httpx.ConnectError,
    httpx.ConnectTimeout,
)
"""Errors that are raised if nothing answers at an address."""


class Failed(Exception):
    """A request that the server answers with an error."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status
        """HTTP status, if the request was not accepted; None if its trace failed."""


ON_THE_WAY = (OSError, httpx.HTTPError, websocket.WebSocketException, Failed)
"""Errors of the connection, and those that a server reports."""


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
    # Any other error of the connection is no fault of the request.
    if not isinstance(error, Failed):
        return True
    text = str(error)
    if error.status is not None:
        return error.status in PASSING
    # These fail again, even if a traceback holds one of the words in TRANSIENT.
    if text.startswith("Could not deploy") or "Traceback (most recent call last)" in text:
        return False
    return TRANSIENT.search(text) is not None


def reason(error: Exception, there: str) -> str:
    """Return the reason why a request failed, in one line.

    Parameters
    ----------
    error : Exception
        One of `ON_THE_WAY`.
    there : str
        Path of the file that the trace is written in.
    """
    if isinstance(error, websocket.WebSocketBadStatusException):
        return f"the connection is refused with status {error.status_code}"
    return _gist(str(error), there) if isinstance(error, Failed) else first_line(error)


def explain(error: Exception, reason: str, host: str) -> str:
    """Return why a request failed for good, and what the user can do."""
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
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
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
