"""Standard errors of means over sequences, clustered by document."""

import numpy as np
import xarray as xr


def standard_error(values: xr.DataArray) -> xr.DataArray:
    """Standard error of the mean over sequences, which within a document are not independent.

    The cluster-robust estimator: with n sequences, G documents and x̄ the mean,

        se² = G / (G - 1) · Σ_g (Σ_{i in g} (x_i - x̄))² / n²

    Parameters
    ----------
    values : DataArray
        With a dimension `sequence` and a coordinate `document` along it.

    Returns
    -------
    DataArray
        Without `sequence`; NaN where there is a single document, or a value is missing.
    """
    residual = values.astype("float64") - values.mean("sequence", dtype="float64", skipna=False)
    per_document = residual.groupby("document").sum("sequence", skipna=False)
    documents = per_document.sizes["document"]
    if documents < 2:
        return xr.full_like(per_document.isel(document=0, drop=True), np.nan)
    variance = (per_document**2).sum("document", skipna=False) * documents / (documents - 1)
    return variance**0.5 / values.sizes["sequence"]
