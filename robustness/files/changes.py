"""Changes during a run: how much of it is run at once, from which sequence on.

The numbers of a sequence depend on that by rounding alone. So a run may go on with other batches
than it began with, and takes less at once where memory runs out; its file says so.
"""

import re
from collections.abc import Mapping
from typing import Any

ADJUSTABLE = ("batch_tokens", "state_cap")
"""Settings that may change when a run goes on. A file has those that its run began with."""

CHANGED = "batches_changed"
"""Name of the attribute that says from which sequence on these settings were others."""

LOST = "out_of_memory"
"""Name of the attribute that says from which sequence on less was run at once."""

NOTES = (CHANGED, LOST)

_NOTE = re.compile(r"from sequence (\d{1,18}) on ([^;]+)")

_SETTING = re.compile(rf"({'|'.join(ADJUSTABLE)}) (\w+)")


def noted(attrs: Mapping[str, Any], name: str, sequence: int, text: str) -> dict[str, str]:
    """Return an attribute with one more note, which holds from a sequence on."""
    note = f"from sequence {sequence} on {text}"
    return {name: f"{attrs[name]}; {note}" if attrs.get(name) else note}


def lowered(attrs: Mapping[str, Any]) -> str:
    """Return the notes of where memory ran out since batches were last changed."""
    changed = max((sequence for sequence, _ in _notes(attrs, CHANGED)), default=-1)
    return "; ".join(text for sequence, text in _notes(attrs, LOST) if sequence > changed)


def began_with(attrs: Mapping[str, Any]) -> int | None:
    """Return the tokens of text in a batch that a run began with, if it has begun."""
    tokens = str(attrs.get("batch_tokens", ""))
    return int(tokens) if re.fullmatch("[1-9][0-9]{0,17}", tokens) else None


def carried(earlier: Mapping[str, Any], wanted: Mapping[str, Any], done: int) -> dict[str, Any]:
    """Return the attributes that a run takes over from its beginning, and a note of what changes.

    Parameters
    ----------
    earlier, wanted : mapping
        Attributes of the file that a run goes on from, and of the run.
    done : int
        Number of sequences in the file.
    """
    kept = {name: earlier[name] for name in (*ADJUSTABLE, *NOTES) if name in earlier}
    # Of several runs that were merged, each has notes of its own.
    if CHANGED in wanted:
        return kept
    before = {name: str(earlier.get(name)) for name in ADJUSTABLE}
    for _, text in _notes(earlier, CHANGED):
        before |= dict(_SETTING.findall(text))
    changed = []
    for name in ADJUSTABLE:
        if name in wanted and str(wanted[name]) != before[name]:
            changed.append(f"{name} {wanted[name]}")
    return kept | (noted(kept, CHANGED, done, ", ".join(changed)) if changed else {})


def _notes(attrs: Mapping[str, Any], name: str) -> list[tuple[int, str]]:
    notes = _NOTE.findall(str(attrs.get(name, "")))
    return [(int(sequence), text) for sequence, text in notes]
