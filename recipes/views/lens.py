"""Views of logit lens files: the predictions of the residual stream at every depth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import xarray as xr

from recipes.views import style
from recipes.views.sections import Section, named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTH = "depth (blocks that have run)"
"""Label of the horizontal axis."""


def sections(dataset: xr.Dataset) -> Iterator[Section]:
    """Yield readouts by depth, one table for each lens."""
    for lens in dataset["lens"].values:
        yield Section(str(lens), "depth", dict(named(dataset.sel(lens=lens))))


def figure(dataset: xr.Dataset) -> Figure:
    """Draw entropy, KL to the final prediction and agreement over depth, for both lenses."""
    figure, axes = style.panels(1, 3, (13 / 3, 4.2))
    entropy, divergence, agreement = axes[0]
    style.lines(entropy, dataset["entropy"], "lens", DEPTH)
    entropy.set_ylabel("entropy [nat]")
    entropy.set_title("How sure the lens is")
    entropy.legend(title="final norm", frameon=False)
    style.lines(divergence, dataset["kl"], "lens", DEPTH)
    divergence.set_ylabel("KL(final ‖ lens) [nat]")
    divergence.set_title("How far it is from the final prediction")
    style.lines(agreement, dataset["agreement"], "lens", DEPTH)
    agreement.set_ylim(0, 1)
    agreement.set_ylabel("share of tokens with the final top-1")
    agreement.set_title("Agreement with the final prediction")
    return figure
