"""Published values: what is known of a model, beside what its own files have in their place."""

from math import nan

from recipes.evidence.files import Files
from recipes.evidence.published_values import PUBLISHED, Published


def find(model: str, quantity: str) -> Published | None:
    """Return what was published of a quantity for a model, if anything was."""
    for record in PUBLISHED:
        if (record.model, record.quantity) == (model, quantity):
            return record
    return None


def of_model(files: Files) -> list[tuple[Published, dict[str, tuple[float, float]]]]:
    """Return all that was published for a model and can be compared with its files.

    Returns
    -------
    list of tuple
        The record, and by place the value that was published and the one that was measured (NaN
        where there is none).
    """
    found = []
    for record in PUBLISHED:
        if record.model == files.name and files.has(record.source):
            here = record.measured(files)
            rows = {place: (value, here.get(place, nan)) for place, value in record.values.items()}
            found.append((record, rows))
    return found
