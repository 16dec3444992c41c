"""Views of claims: verdicts on the paper's claims, and the numbers behind them; no figure."""

from collections.abc import Iterator

import xarray as xr

from recipes.views.sections import Section


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield the verdict on every claim, and its numbers with their intervals and thresholds."""
    verdicts = {
        "verdict": dataset["verdict"].astype(str),
        "what the paper says": dataset["text"].astype(str),
        "why it cannot be judged": dataset["reason"].astype(str),
    }
    yield Section("", "claim", verdicts)
    numbers = dataset.set_index(check="check_text").rename(check="number")
    columns = {"claim": numbers["check_claim"].astype(str)}
    for name in ("value", "low", "high", "least", "most"):
        columns[name] = numbers[name]
    yield Section("the numbers behind them", "number", columns)
