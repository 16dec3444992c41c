"""Cuts: the spans of blocks that a schedule lacks."""

from collections.abc import Iterator

from robustness.errors import Refusal
from robustness.schedules import Schedule, to_text
from robustness.schedules.steps import is_block


def cuts(schedule: Schedule, layers: int) -> list[tuple[int, int]]:
    """Return the first and the last block of every span that a schedule leaves out.

    >>> cuts((0, 1, 4, 6), 8)
    [(2, 3), (5, 5), (7, 7)]

    Raises
    ------
    Refusal
        If the schedule is not some of the blocks in their order, or all of them.
    """
    blocks = [step for step in schedule if is_block(step)]
    if len(blocks) < len(schedule) or blocks != sorted(set(blocks)):
        raise Refusal(
            f"{to_text(schedule)} cannot be healed: it is no model from which whole blocks were "
            "removed, as 0..3-8.. is"
        )
    found = list(_spans(blocks, layers))
    if not found:
        raise Refusal(f"{to_text(schedule)} lacks no block: there is nothing to heal")
    return found


def _spans(blocks: list[int], layers: int) -> Iterator[tuple[int, int]]:
    """Yield the first and the last index of every gap in ascending blocks."""
    following = 0
    for block in (*blocks, layers):
        if block > following:
            yield following, block - 1
        following = block + 1
