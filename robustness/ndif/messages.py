"""Messages of a server about the state of a request."""

import json
import re
from dataclasses import dataclass
from typing import Any

from robustness.ndif.limits import Unreadable
from robustness.ndif.pickle_reader import load

STATUS = re.compile("[A-Z_]{1,40}")
"""Pattern of a status."""


@dataclass(frozen=True)
class Message:
    """Message of a server about a request."""

    status: str
    """State of the request, such as `QUEUED` or `COMPLETED`."""
    description: str
    """Explanation for the user; may be empty."""
    data: Any
    """Result of a request that is done, as bytes, or the address to fetch it from."""


def read_message(frame: str | bytes, most: float) -> Message:
    """Read one message: JSON as text, or as torch saves it.

    Raises
    ------
    Unreadable
        If it is no message.
    """
    # A text is JSON; a server that has a result at hand sends it as torch saves it.
    entries = json.loads(frame) if isinstance(frame, str) else load(frame, most)
    if not isinstance(entries, dict):
        raise Unreadable("a message is no dictionary")
    status, description, data = map(entries.get, ("status", "description", "data"))
    if not isinstance(status, str) or not STATUS.fullmatch(status):
        raise Unreadable("a message has no status")
    if not isinstance(description, str | None) or not isinstance(data, str | bytes | None):
        raise Unreadable("a message has no text where one is due")
    return Message(status, description or "", data)
