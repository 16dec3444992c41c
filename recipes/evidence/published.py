"""Published values of a model, beside the values measured in its files."""

from math import nan

from recipes.evidence.files import Files
from recipes.evidence.published_values import PUBLISHED, Published


def find(model: str, quantity: str) -> Published | None:
    """Return the published values of a quantity for a model, if there are any."""
    for record in PUBLISHED:
        if (record.model, record.quantity) == (model, quantity):
            return record
    return None


def of_model(files: Files) -> list[tuple[Published, dict[str, tuple[float, float]]]]:
    """Return all published values of a model that can be compared with its files.

    Returns
    -------
    list of tuple
        Records, each with pairs by place: the published value and the measured one (NaN where there
        is none).
    """
    compared = []
    for record in PUBLISHED:
        if record.model == files.name and files.has(record.source):
            measured = record.measured(files)
            pairs = {}
            for place, value in record.values.items():
                pairs[place] = value, measured.get(place, nan)
            compared.append((record, pairs))
    return compared
