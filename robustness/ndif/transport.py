"""Connections to a server over HTTP, which read no more than was asked for, and never for ever."""

import ipaddress
import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import httpx

from robustness.ndif.limits import Unreadable, check_size

CONNECT = 20.0
"""Maximum number of seconds for making a connection."""

SMALL = 16e6
"""Maximum number of bytes of an answer without numbers."""


@contextmanager
def connection() -> Iterator[httpx.Client]:
    """Open what keeps a connection alive from one question to the next."""
    # Uncompressed, since a few compressed bytes can become many in memory.
    headers = {"Accept-Encoding": "identity"}
    with httpx.Client(verify=_certificates(), headers=headers) as client:
        yield client


def fetch(
    client: httpx.Client,
    method: str,
    url: str,
    most: float,
    timeout: httpx.Timeout,
    within: float,
    **options: Any,
) -> tuple[int, str, bytes]:
    """Fetch an answer over HTTP.

    Parameters
    ----------
    client : Client
        An open `connection`.
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
        Address that the answer redirects to, which is not followed, or nothing.
    body : bytes

    Raises
    ------
    Unreadable
        If the answer has more bytes, or is compressed, which was not asked for.
    ReadTimeout
        If the whole answer takes longer, even if its parts come in time.
    """
    end = time.monotonic() + within
    with client.stream(method, url, timeout=timeout, **options) as response:
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


def place_of(link: str, host: str) -> str:
    """Return where the link of a result leads, without its path and its signature.

    Raises
    ------
    Unreadable
        If no result is fetched from there: it is not HTTP, or names this machine or one beside it,
        which are no places of the results of a server elsewhere.
    """
    try:
        url = httpx.URL(link)
    except (httpx.InvalidURL, ValueError):
        raise Unreadable("its link to the result is no address") from None
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo:
        raise Unreadable("its link to the result is no address of HTTP")
    place = f"{url.scheme}://{url.netloc.decode()}"
    if _is_here(url.host) and not _is_here(httpx.URL(host).host):
        raise Unreadable(
            f"its link to the result leads to {place}, which is an address of this machine: the "
            "server must be told the address by which others reach its store"
        )
    return place


def _is_here(host: str) -> bool:
    """Whether a name or number of a machine stands for this one, or is valid only beside it."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        # A proxy may know it.
        return False
    for each in found:
        address = ipaddress.ip_address(each.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None) or address
        if mapped.is_loopback or mapped.is_link_local or mapped.is_unspecified:
            return True
    return False
