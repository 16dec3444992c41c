"""Messages in which a server says how a request stands."""

import json
import re
from dataclasses import dataclass
from typing import Any

from robustness.ndif.limits import Unreadable
from robustness.ndif.pickle_reader import load

STATUS = re.compile("[A-Z_]{1,40}")


@dataclass(frozen=True)
class Message:
    """What a server says of a request."""

    status: str
    """Such as `QUEUED` or `COMPLETED`."""
    description: str
    data: Any
    """Result of a request that is done, as bytes, or the address where it is fetched."""


def read_message(frame: str | bytes, most: float) -> Message:
    """Read one message: JSON as text, or as torch saves it.

    Raises
    ------
    Unreadable
        If it is no message.
    """
    entries = json.loads(frame) if isinstance(frame, str) else load(frame, most)
    if not isinstance(entries, dict):
        raise Unreadable("a message is no dictionary")
    status, description, data = (entries.get(name) for name in ("status", "description", "data"))
    if not isinstance(status, str) or not STATUS.fullmatch(status):
        raise Unreadable("a message has no status")
    if not isinstance(description, str | None) or not isinstance(data, str | bytes | None):
        raise Unreadable("a message has no text where one is due")
    return Message(status, description or "", data)
