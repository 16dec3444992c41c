"""Connections to a server: answers over HTTP, and messages over a websocket.

No more bytes are read than were asked for, and no wait is endless.
"""

import json
import socket
import ssl
import time
from functools import cache
from typing import Any

import httpx
import websocket

from robustness.ndif.limits import Unreadable, check_size

CONNECT = 20.0
"""Maximum number of seconds for making a connection."""

SMALL = 16e6
"""Maximum number of bytes of an answer without numbers."""

# Without these options, a server that loses power is waited for in vain. Some systems lack some.
_KEEPALIVE = tuple(
    (level, getattr(socket, name), value)
    for level, name, value in (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 30),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 10),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 6),
    )
    if hasattr(socket, name)
)


def fetch(
    method: str,
    url: str,
    most: float,
    timeout: httpx.Timeout,
    within: float = float("inf"),
    **options: Any,
) -> tuple[int, str, bytes]:
    """Fetch an answer over HTTP.

    Parameters
    ----------
    method, url, options
        As for `httpx.Client.stream`.
    most : float
        Maximum number of bytes of the answer.
    timeout : Timeout
        Maximum seconds for the connection, and between two parts of the answer.
    within : float
        Maximum seconds for the whole answer.

    Returns
    -------
    status : int
    elsewhere : str
        Address that the answer redirects to, or nothing.
    body : bytes

    Raises
    ------
    Unreadable
        If the answer has more bytes, or is compressed, which was not asked for.
    ReadTimeout
        If the whole answer takes longer, even if its parts come in time.
    """
    end = time.monotonic() + within
    # Uncompressed, since a few compressed bytes can become many in memory.
    headers = {"Accept-Encoding": "identity"}
    with (
        httpx.Client(verify=_certificates(), timeout=timeout, headers=headers) as client,
        client.stream(method, url, **options) as response,
    ):
        if response.headers.get("content-encoding", "identity") != "identity":
            raise Unreadable("it is compressed")
        body = bytearray()
        for piece in response.iter_raw():
            body += piece
            check_size(len(body), most)
            if time.monotonic() > end:
                raise httpx.ReadTimeout("it answers too slowly")
        # Without a query, which may hold a signature.
        elsewhere = response.headers.get("location", "").partition("?")[0]
        return response.status_code, elsewhere, bytes(body)


@cache
def _certificates() -> ssl.SSLContext:
    """Read the certificates that servers are checked against: once, since it takes 50 ms."""
    return httpx.create_ssl_context()


def parse(body: str | bytes) -> Any:
    """Return the value of a JSON text, or None if it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def subscribe(host: str, key: str) -> Any:
    """Connect to the messages of a server about requests."""
    return websocket.create_connection(
        f"{host}/subscribe",
        header={"ndif-api-key": key},
        timeout=CONNECT,
        sockopt=_KEEPALIVE,
        # A redirect would take the key to another server.
        redirect_limit=0,
        class_=_Socket,
    )


def hear(connection: Any) -> str | bytes:
    """Wait for the next message."""
    message: str | bytes = connection.recv()
    if not message:
        raise ConnectionError("the server closed the connection")
    return message


class _Socket(websocket.WebSocket):
    """A websocket that reads at most `most` bytes of a message."""

    most, _count = SMALL, 0

    def recv(self) -> str | bytes:
        message: str | bytes = websocket.WebSocket.recv(self)
        self._count = 0
        return message

    def _recv(self, bufsize: int) -> bytes:
        piece: bytes = websocket.WebSocket._recv(self, bufsize)  # type: ignore[no-untyped-call]
        self._count += len(piece)
        check_size(self._count, self.most)
        return piece
