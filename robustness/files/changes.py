"""Changes of the sizes of batches and requests during a run, as notes in its file's attributes.

These settings change the numbers of a sequence by rounding alone. A run may therefore continue with
others than it began with, and takes smaller ones where memory runs out, or a server's time.
"""

import re
from collections.abc import Mapping
from typing import Any

from robustness.files.precision_floor import floor_attributes

REQUESTS = "requests_per_batch"
"""Name of the setting that says over how many requests to a server a batch's schedules are divided.
"""

OF_BATCHES = ("batch_tokens", "state_cap")
"""Settings of the size of batches, by which a run is divided into shards."""

ADJUSTABLE = (*OF_BATCHES, REQUESTS)
"""Settings that may change when a run continues. A file has those that its run began with."""

CHANGED = "batches_changed"
"""Name of the attribute that says which of these settings changed, and from which sequence on."""

LOST = "out_of_memory"
"""Name of the attribute that says how they were made smaller for lack of memory, and from which
sequence on."""

LATE = "out_of_time"
"""Name of the attribute that says the same of requests that took a server too long."""

LACKING = {"memory": LOST, "time": LATE}
"""Name of the attribute by what was lacking."""

NOTES = (CHANGED, LOST, LATE)

_NOTE = re.compile(r"from sequence (\d{1,18}) on ([^;]+)")

_SETTING = re.compile(rf"({'|'.join(ADJUSTABLE)}) (\w+)")


def noted(attrs: Mapping[str, Any], name: str, sequence: int, text: str) -> dict[str, str]:
    """Return an attribute with one more note, which holds from a sequence on."""
    note = f"from sequence {sequence} on {text}"
    return {name: f"{attrs[name]}; {note}" if attrs.get(name) else note}


def lowered(attrs: Mapping[str, Any]) -> str:
    """Return the notes on what was made smaller since the settings were last changed."""
    changed = max((sequence for sequence, _ in _notes(attrs, CHANGED)), default=-1)
    notes = [*_notes(attrs, LOST), *_notes(attrs, LATE)]
    return "; ".join(text for sequence, text in notes if sequence > changed)


def began_with(attrs: Mapping[str, Any]) -> int | None:
    """Return the number of tokens in a batch that a run began with, or None without a run."""
    tokens = str(attrs.get("batch_tokens", ""))
    return int(tokens) if re.fullmatch("[1-9][0-9]{0,17}", tokens) else None


def carried(earlier: Mapping[str, Any], wanted: Mapping[str, Any], done: int) -> dict[str, Any]:
    """Return the attributes that a continued run keeps, with a note on the settings that change.

    Parameters
    ----------
    earlier, wanted : mapping
        Attributes of the file that a run continues from, and of the run.
    done : int
        Number of sequences in the file.
    """
    kept = {name: earlier[name] for name in (*ADJUSTABLE, *NOTES) if name in earlier}
    # Measured once, at the beginning.
    kept |= floor_attributes(earlier)
    # A merged file already has the notes of its shards, which are no changes of this run.
    if CHANGED in wanted:
        return kept
    before = {name: str(earlier.get(name)) for name in ADJUSTABLE}
    # Files of earlier versions do not say it.
    before[REQUESTS] = str(earlier.get(REQUESTS, 1))
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
