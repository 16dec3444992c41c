"""What changed while a run went on: how much of it is run at once, from which sequence on.

The numbers of a sequence do not depend on that but by rounding. So a run may go on with other
batches than it began with, and takes less at once where memory runs out; its file says so.
"""

import re
from collections.abc import Mapping
from typing import Any

ADJUSTABLE = ("batch_tokens", "state_cap")
"""Settings that a run which is gone on with need not share with its beginning.

A file has those that it began with."""

CHANGED = "batches_changed"
"""The attribute that says from which sequence on these were others."""

LOST = "out_of_memory"
"""The attribute that says from which sequence on less was run at once than was asked for."""

NOTES = (CHANGED, LOST)

_NOTE = re.compile(r"from sequence (\d{1,18}) on ([^;]+)")

_SETTING = re.compile(rf"({'|'.join(ADJUSTABLE)}) (\w+)")


def noted(attrs: Mapping[str, Any], name: str, sequence: int, text: str) -> dict[str, str]:
    """Return an attribute with one note more: that something is so from a sequence on."""
    note = f"from sequence {sequence} on {text}"
    return {name: f"{attrs[name]}; {note}" if attrs.get(name) else note}


def lowered(attrs: Mapping[str, Any]) -> str:
    """Return what was recorded where memory ran out, since other batches were last asked for."""
    changed = max((sequence for sequence, _ in _notes(attrs, CHANGED)), default=-1)
    return "; ".join(text for sequence, text in _notes(attrs, LOST) if sequence > changed)


def began_with(attrs: Mapping[str, Any]) -> int | None:
    """Return the tokens of text in a batch that a run began with, if it has begun."""
    found = str(attrs.get("batch_tokens", ""))
    return int(found) if re.fullmatch("[1-9][0-9]{0,17}", found) else None


def carried(found: Mapping[str, Any], wanted: Mapping[str, Any], done: int) -> dict[str, Any]:
    """Return what a run takes over from its beginning: what it began with, and what changed since.

    Parameters
    ----------
    found, wanted : mapping
        Attributes of what is there, and of the run that goes on from it.
    done : int
        How many sequences are there.
    """
    kept = {name: found[name] for name in (*ADJUSTABLE, *NOTES) if name in found}
    if CHANGED in wanted:  # several runs were put together: each has its own
        return kept
    before = {name: str(found.get(name)) for name in ADJUSTABLE}
    for _, text in _notes(found, CHANGED):
        before |= dict(_SETTING.findall(text))
    others = [
        f"{name} {wanted[name]}"
        for name in ADJUSTABLE
        if name in wanted and str(wanted[name]) != before[name]
    ]
    return kept | (noted(kept, CHANGED, done, ", ".join(others)) if others else {})


def _notes(attrs: Mapping[str, Any], name: str) -> list[tuple[int, str]]:
    found = _NOTE.findall(str(attrs.get(name, "")))
    return [(int(sequence), text) for sequence, text in found]
