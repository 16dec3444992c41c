"""Connections to a server: what is fetched over HTTP, and what is heard over a socket.

No more is read than was asked for, and nothing is waited for without end.
"""

import json
import socket
import time
from typing import Any

import httpx
import websocket

from robustness.ndif.limits import Unreadable, check_size

CONNECT = 20.0
"""Seconds for making a connection."""

SMALL = 16e6
"""Maximum number of bytes of an answer without numbers."""

# Without them, a server that loses power is waited for in vain.
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
    """Ask for something over HTTP.

    Parameters
    ----------
    method, url, options
        As of `httpx.Client.stream`.
    most : float
        Maximum number of bytes of the answer.
    timeout : Timeout
        Seconds for the connection and between two words of the server.
    within : float
        Seconds for all of the answer.

    Returns
    -------
    status : int
    elsewhere : str
        Where the answer points to, or nothing.
    body : bytes

    Raises
    ------
    Unreadable
        If more is sent than so many bytes, or it is compressed, which was not asked for.
    ReadTimeout
        If it takes longer than so many seconds, however little at a time.
    """
    end = time.monotonic() + within
    with (
        httpx.Client(timeout=timeout, headers={"Accept-Encoding": "identity"}) as client,
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
        elsewhere = response.headers.get("location", "").partition("?")[0]
        return response.status_code, elsewhere, bytes(body)


def parse(body: str | bytes) -> Any:
    """Return what is written in JSON, or None."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def subscribe(host: str, key: str) -> Any:
    """Connect to where a server tells how requests stand."""
    return websocket.create_connection(
        f"{host}/subscribe",
        header={"ndif-api-key": key},
        timeout=CONNECT,
        sockopt=_KEEPALIVE,
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
    """Reads no more of one message than was asked for."""

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
