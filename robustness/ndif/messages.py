"""Messages of a server about the state of a job."""

import re
from dataclasses import dataclass
from typing import Any

from nnsight.schema.response import Status

from robustness.ndif.limits import Unreadable
from robustness.ndif.transport import parse

STATES = frozenset(status.value for status in Status) - {Status.LOG.value}
"""States of a job; what a trace prints is no state of it."""

ID = re.compile("[A-Za-z0-9_-]{1,100}")
"""Pattern of a job's id, which becomes a part of addresses."""


LONGEST = 10_000
"""Number of characters that are read at the beginning and at the end of a description."""


@dataclass(frozen=True)
class Message:
    """Message of a server about a job."""

    id: str
    """The job's id."""
    state: str
    """State of the job, such as `QUEUED` or `COMPLETED`."""
    description: str
    """Explanation for the user; may be empty."""
    link: str | None
    """Address of the result of a job that is done."""
    meta: Any
    """What the server says that the job has cost; anything."""


def read_message(body: bytes) -> Message:
    """Read one message, which is JSON.

    Raises
    ------
    Unreadable
        If it is no message.
    """
    entries = parse(body)
    if not isinstance(entries, dict):
        raise Unreadable("a message is no dictionary")
    name, state, text, link = map(entries.get, ("id", "status", "description", "data"))
    if not isinstance(state, str) or state not in STATES:
        raise Unreadable("a message has no state of a job")
    if not isinstance(name, str) or not ID.fullmatch(name):
        raise Unreadable("a message has no id of a job")
    if not isinstance(text, str | None):
        raise Unreadable("a message has no text where one is due")
    # Only a job that is done has a result, and nothing else is read of other messages.
    if state == Status.COMPLETED and (not isinstance(link, str) or not link):
        raise Unreadable("a result without values")
    address = link if isinstance(link, str) else None
    text = text or ""
    # A traceback begins with what it is and ends with the error; searching all takes its time.
    if len(text) > 2 * LONGEST:
        text = f"{text[:LONGEST]}\n{text[-LONGEST:]}"
    return Message(name, state, text, address, entries.get("meta"))
